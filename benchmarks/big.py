"""What the benchmarks of large tables share: disk checks, plain copying, another process's peak memory, the verdict."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.common import print_json

ALLOWANCE = 500_000_000
TARGET = 0.7
_BLOCK = 16 << 20
_CHILD = r"""
import json, re, sys, time
from pathlib import Path
import ultramem_deploy as um
import ultramem_deploy.converters.importers
verb, options = sys.argv[1], json.loads(sys.argv[2])
if verb == "fold":
    import ultramem_deploy.converters.fold.receipt
start = time.perf_counter()
getattr(um, verb)(**options)
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak}))
"""


@contextmanager
def workspace(parent: Path, needed: int, what: str) -> Iterator[Path]:
    """An empty folder below `parent`, deleted in the end; refuses by name where the disk cannot hold `needed` bytes."""
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise click.ClickException(
            f"{what}: {parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: give --directory on a"
            " larger disk, or --quick"
        )
    folder = parent / f"ultramem-{what}-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_alone(verb: str, **options: Any) -> dict[str, Any]:
    """Seconds (libraries imported before) and peak_rss_bytes of a verb in a process of its own."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    command = [sys.executable, "-c", _CHILD, verb, json.dumps(given)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise click.ClickException(f"{verb}: {result.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def copy_seconds(files: Iterable[Path], folder: Path) -> float:
    """Seconds of plain copying: each file read and written block by block through the page cache, and synced."""
    total = 0.0
    for file in files:
        forget(file)
        target = folder / "copied"
        start = time.perf_counter()
        with open(file, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
            shutil.copyfileobj(reader, writer, _BLOCK)
            os.fsync(writer.fileno())
        total += time.perf_counter() - start
        target.unlink()
    return total


def forget(file: Path) -> None:
    """Drop a file from the page cache, so that whoever reads it next reads the disk."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def judged(found: dict[str, Any], budget: int, moved: int, others: dict[str, float]) -> dict[str, Any]:
    """The figures of a run that wrote `moved` bytes against the seconds that `others` took for the same bytes."""
    rates = {f"{name}_gb_per_second": moved / seconds / 1e9 for name, seconds in others.items()}
    ratio = max(others.values()) / found["seconds"]
    limit = budget + ALLOWANCE
    return {
        "gb": moved / 1e9,
        "seconds": found["seconds"],
        "gb_per_second": moved / found["seconds"] / 1e9,
        **rates,
        "ratio": ratio,
        "ratio_target": TARGET,
        "peak_rss_mb": found["peak_rss_bytes"] / 1e6,
        "peak_limit_mb": limit / 1e6,
        "passed": ratio >= TARGET and found["peak_rss_bytes"] <= limit,
    }


def big_options(command: Callable[..., None]) -> click.Command:
    """--quick, --budget, --jobs, --directory and --json, as every benchmark of large tables has them."""
    options = (
        click.option("--quick", is_flag=True, help="Tables of 0.4 GB."),
        click.option("--budget", default="2GiB", show_default=True, help="The stage's --memory-budget."),
        click.option("--jobs", type=click.IntRange(1), help="The stage's --jobs."),
        click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where files lie."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line."),
    )
    for option in reversed(options):
        command = option(command)
    return click.command()(command)


def report(result: dict[str, Any], as_json: bool) -> None:
    """The figures as a table, and as the last line in JSON; exit code 1 where a target is missed."""
    for name, value in result.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if as_json:
        print_json(result)
    if not result["passed"]:
        sys.exit(1)
