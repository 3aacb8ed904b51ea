"""Converts two memory layers of P1's 1.6B model, 25.7 million virtual values, from bfloat16 to float16.

    python benchmarks/big_convert.py [--quick] [--budget 1GiB] [--directory DIR] [--json]

Targets: peak RSS under the budget + 500 MB; bytes a second at least 0.7 of plain copying. The source is a canonical
checkpoint made here. Needs 41 GB of disk, --quick 2 GB; the last line is JSON with --json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import ALLOWANCE, TARGET, copy_seconds, model, report, run_alone, workspace, write_source
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.units import parse_bytes


@click.command()
@click.option("--quick", is_flag=True, help="Tables of 0.4 GB.")
@click.option("--budget", default="1GiB", show_default=True, help="The conversion's --memory-budget.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where the files lie.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
def main(quick: bool, budget: str, directory: Path, as_json: bool) -> None:
    """Measure `convert --dtype float16`."""
    spec = model(hidden=2048, knum=320 if quick else 1792, key_width=512, value_width=1024, top_m=42, layers=2)
    tables = sum(table.rows * table.value_width * 2 for table in spec.tables.values())
    with workspace(directory, 3 * tables + 10**9, "big-convert") as folder:
        write_source(folder / "source", spec)
        report(_measure(folder, spec, parse_bytes(budget, "--budget")), as_json)


def _measure(folder: Path, spec: ModelSpec, budget: int) -> dict[str, Any]:
    found = run_alone("convert", src=folder / "source", out=folder / "out", dtype="float16", memory_budget=budget)
    files = list((folder / "out").glob("*.safetensors"))
    written = sum(file.stat().st_size for file in files)
    copying = sum(copy_seconds(file, folder / "copied") for file in (folder / "source").glob("*.safetensors"))
    rates = {
        "convert_gb_per_second": written / found["seconds"] / 1e9,
        "copy_gb_per_second": written / copying / 1e9,
    }
    ratio = rates["convert_gb_per_second"] / rates["copy_gb_per_second"]
    return {
        "virtual_values": sum(layer.virtual_slots for layer in spec.memory),
        "written_gb": written / 1e9,
        "seconds": found["seconds"],
        **rates,
        "ratio_to_copy": ratio,
        "peak_rss_mb": found["peak_rss_bytes"] / 1e6,
        "peak_limit_mb": (budget + ALLOWANCE) / 1e6,
        "passed": ratio >= TARGET and found["peak_rss_bytes"] <= budget + ALLOWANCE,
    }


if __name__ == "__main__":
    main()
