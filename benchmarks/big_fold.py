"""Expand-folds one memory layer of P1's 151M model: 4.84 million virtual values, 19.8 GB in bfloat16.

    python benchmarks/big_fold.py [--quick] [--budget 2GiB] [--directory DIR] [--json]

Targets: peak RSS under the budget + 500 MB; bytes of table a second at least 0.7 of the slower of plain copying and of
the same multiplications alone. Needs 42 GB of disk, --quick 1 GB; the last line is JSON with --json.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import ALLOWANCE, TARGET, copy_seconds, model, report, run_alone, workspace, write_source
from ultramem_deploy.planning.machine import default_jobs
from ultramem_deploy.planning.scratch import TILE
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.units import parse_bytes


@click.command()
@click.option("--quick", is_flag=True, help="A table of 0.4 GB, of rows as wide.")
@click.option("--budget", default="2GiB", show_default=True, help="The fold's --memory-budget.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where the files lie.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
def main(quick: bool, budget: str, directory: Path, as_json: bool) -> None:
    """Measure `fold --mode expand`."""
    spec = model(hidden=1024, knum=160 if quick else 1100, key_width=256, value_width=512, top_m=16, layers=1)
    layer = spec.memory[0]
    table = layer.virtual_slots * layer.cores * spec.decoder.hidden_size * 2
    with workspace(directory, 2 * table + spec.tables["layer0"].rows * 1024 + 10**9, "big-fold") as folder:
        write_source(folder / "source", spec)
        report(_measure(folder, spec, table, parse_bytes(budget, "--budget")), as_json)


def _measure(folder: Path, spec: ModelSpec, table: int, budget: int) -> dict[str, Any]:
    # Before and after: other processes come and go.
    gemm = [_gemm_seconds(spec)]
    found = run_alone("fold", src=folder / "source", out=folder / "out", mode="expand", memory_budget=budget)
    gemm.append(_gemm_seconds(spec))
    (file,) = (f for f in (folder / "out").glob("*.safetensors") if f.stat().st_size > table)
    rates = {
        "fold_gb_per_second": table / found["seconds"] / 1e9,
        "copy_gb_per_second": table / copy_seconds(file, folder / "copied") / 1e9,
        "gemm_gb_per_second": table / (sum(gemm) / len(gemm)) / 1e9,
    }
    ratio = rates["fold_gb_per_second"] / min(rates["copy_gb_per_second"], rates["gemm_gb_per_second"])
    return {
        "virtual_values": spec.memory[0].virtual_slots,
        "table_gb": table / 1e9,
        "seconds": found["seconds"],
        **rates,
        "ratio_to_slower": ratio,
        "peak_rss_mb": found["peak_rss_bytes"] / 1e6,
        "peak_limit_mb": (budget + ALLOWANCE) / 1e6,
        "jobs": default_jobs(),
        "passed": ratio >= TARGET and found["peak_rss_bytes"] <= budget + ALLOWANCE,
    }


def _gemm_seconds(spec: ModelSpec) -> float:
    """Seconds of the fold's products alone, float64, as many threads, one core each; a sample of them scaled up."""
    layer, hidden = spec.memory[0], spec.decoder.hidden_size
    part = spec.tables[layer.table].value_width // layer.cores
    total = layer.virtual_slots // TILE * layer.cores
    sample = min(total, 8192)
    rng = np.random.default_rng(0)
    values, weight = rng.standard_normal((TILE, part)), rng.standard_normal((part, hidden))

    def multiply(count: int) -> None:
        for _ in range(count):
            values @ weight

    jobs = default_jobs()
    with threadpool_limits(1), ThreadPoolExecutor(jobs) as pool:
        start = time.perf_counter()
        list(pool.map(multiply, [sample // jobs] * jobs))
        seconds = time.perf_counter() - start
    return seconds * total / (sample // jobs * jobs)


if __name__ == "__main__":
    main()
