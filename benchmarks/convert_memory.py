"""Peak memory and speed of `convert` on a checkpoint of saved Hugging Face safetensors.

    python benchmarks/convert_memory.py [SRC] [--json]

Target: peak RSS at most 1.5 x the largest shard + 300 MB. SRC defaults to SmolLM2-135M in float32 as transformers
saves it, made once from the demo's download. Each case runs in a process of its own; the last line is JSON with --json.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sources import saved_source

CASES = ("keep", "keep --copy", "bfloat16")


@click.command()
@click.argument("src", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--child", hidden=True, nargs=2)
def main(src: Path | None, as_json: bool, child: tuple[str, str] | None) -> None:
    """Measure `convert` on SRC, a Hugging Face directory."""
    if child and src:
        _convert(src, *child)
        return
    src = src or saved_source()
    largest = max(file.stat().st_size for file in src.glob("*.safetensors"))
    limit = 1.5 * largest + 300e6
    rows = [_measure(src, case) | {"limit_bytes": limit} for case in CASES]
    print(f"largest shard {largest / 1e6:.0f} MB; limit {limit / 1e6:.0f} MB")
    for row in rows:
        peak = row["peak_rss_bytes"] / 1e6
        print(f"convert --dtype {row['case']:12} peak RSS {peak:6.0f} MB, {row['seconds']:5.2f} s")
    if as_json:
        print(json.dumps({"rows": rows, "passed": all(r["peak_rss_bytes"] <= limit for r in rows)}))


def _measure(src: Path, case: str) -> dict[str, Any]:
    out = Path(tempfile.mkdtemp(dir=src.parent)) / "out"
    try:
        command = [sys.executable, __file__, str(src), "--child", case, str(out)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        shutil.rmtree(out.parent)
    return {"case": case, **json.loads(result.stdout.splitlines()[-1])}


def _convert(src: Path, case: str, out: str) -> None:
    import ultramem_deploy as um

    dtype, *copy = case.split()
    start = time.perf_counter()
    um.convert(src, out, dtype=dtype, copy=bool(copy))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
