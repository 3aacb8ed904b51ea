"""`diff A B`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from .options import EXISTING, json_option, memory_budget_option, quiet_option, verb
from .output import aligned, counted, print_json, progress_bar, size


@verb("diff", "healed tuned --out tuned-delta")
@click.argument("base", type=EXISTING)
@click.argument("changed", type=EXISTING)
@click.option("--out", type=click.Path(path_type=Path), help="Write the changes as a delta that `patch` applies.")
@click.option("--overwrite", is_flag=True, help="Replace a delta that this tool made otherwise.")
@memory_budget_option
@quiet_option
@json_option
def command(
    base: Path, changed: Path, out: Path | None, overwrite: bool, memory_budget: int, quiet: bool, as_json: bool
) -> None:
    """List what changed from BASE to CHANGED: tensors, and rows of tables."""
    with progress_bar("diff", quiet) as progress:
        result = pipeline.diff(
            base, changed, out=out, overwrite=overwrite, memory_budget=memory_budget, progress=progress
        )
    if as_json:
        print_json(result)
        return
    if result["identical"]:
        click.echo("identical")
    for line in aligned({name: _shown(entry) for name, entry in result["tensors"].items()}):
        click.echo(line)
    if result["config_changed"]:
        click.echo("config.json differs")
    if out is not None:
        click.echo(f"delta: {out}, {size(result['delta_bytes'])}")


def _shown(entry: dict[str, Any]) -> str:
    if entry["kind"] != "rows":
        return str(entry["kind"])
    return f"{entry['rows']:,} of {counted(entry['total_rows'], 'row')}"
