"""`profile MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from .options import EXISTING, json_option, quiet_option, runtime_option, verb
from .output import counted, print_json, progress_bar


@verb("profile", "healed --text corpus.txt --out accesses.safetensors --plot heat.png")
@click.argument("model", type=EXISTING)
@click.option("--text", type=EXISTING, help="UTF-8 text to read. Default: the Python language reference.")
@click.option("--tokens", type=click.IntRange(2), default=8192, show_default=True, help="How many tokens of it.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Keep the counts in this file, for fold --order frequency."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw row keys against column keys, PNG.")
@runtime_option
@quiet_option
@json_option
def command(model: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Count how often each slot of each memory layer of MODEL is read: histogram, dead slots, share of the hottest."""
    with progress_bar("profile", quiet) as progress:
        result = pipeline.profile(model, progress=progress, **options)
    if as_json:
        print_json(result)
        return
    click.echo(f"profile: {model} on {counted(result['tokens'], 'token')} of {result['text']} ({result['runtime']})")
    for layer in result["layers"]:
        for line in _lines(layer):
            click.echo(f"  {line}")
    for name in ("out", "plot"):
        if options[name]:
            click.echo(f"written: {options[name]}")


def _lines(layer: dict[str, Any]) -> list[str]:
    dead = layer["dead_slots"] / layer["virtual_slots"]
    hot = ", ".join(f"the hottest {part} take {share:.1%}" for part, share in layer["hottest_share"].items())
    histogram = ", ".join(f"{span}: {slots:,}" for span, slots in layer["histogram"].items())
    return [
        f"layer {layer['layer']}: {layer['accesses']:,} accesses of {layer['virtual_slots']:,} slots; {dead:.1%} never "
        f"read; {hot}; at most {layer['most_accesses']:,} of one slot",
        f"  slots by accesses: {histogram}",
    ]
