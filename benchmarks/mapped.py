"""Rows of a table on a disk: read as the system likes, one after another, asked for together; and resident.

    python benchmarks/mapped.py [--quick] [--json] [--directory DIR]

A file of distinct bytes is written, flushed and evicted (posix_fadvise) before each contender, and the bytes read from
the disk are counted. A batch looks up 64 tokens of 32 rows of 1 KiB, in PyTorch; the cold batches read a small part of
the table. "plain" maps the file and leaves read-ahead to the system; "one by one" expects random reads (MADV_RANDOM);
"mapped" is the mode of docs/kernels.md, which also asks for a batch's rows together; "resident" has been read before.
"warm" repeats the same batches.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import workspace
from benchmarks.common import bytes_read, machine, median, print_json, print_table
from benchmarks.results import save
from ultramem_deploy.ops import native
from ultramem_deploy.ops.placement import placed
from ultramem_deploy.ops.sparse_lookup import sparse_lookup

TOKENS, SLOTS, WIDTH = 64, 32, 512
CHUNK = 64 << 20


@click.command()
@click.option("--quick", is_flag=True, help="Fewer batches of a smaller table.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where the file lies.")
@torch.inference_mode()
def main(quick: bool, as_json: bool, directory: Path) -> None:
    """Measure what reading a batch's rows together gives."""
    size, count = (4 if quick else 16) * 10**9, 4 if quick else 12
    with workspace(directory, size + 10**9, "mapped") as folder:
        file = write(folder / "table", size)
        rows = [measure(name, file, count) for name in ("plain", "one by one", "mapped", "resident")]
    by_name = {row["name"]: row for row in rows}
    result = {
        "rows": rows,
        "mapped_over_plain": by_name["plain"]["cold_ms"] / by_name["mapped"]["cold_ms"],
        "mapped_over_one_by_one": by_name["one by one"]["cold_ms"] / by_name["mapped"]["cold_ms"],
        "table_gb": size / 1e9,
        "machine": machine(),
    }
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if not quick:
        save("mapped", result, rows, plot(rows))
    if as_json:
        print_json(result)


def write(file: Path, size: int) -> Path:
    """A table without holes, no two of its pages alike, on the disk."""
    block = torch.rand(CHUNK // 2, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.int16).numpy()
    with open(file, "wb") as stream:
        for start in range(0, size, CHUNK):
            stream.write(np.roll(block, start // CHUNK * 7 + 1).tobytes()[: size - start])
        stream.flush()
        os.fsync(stream.fileno())
    return file


def measure(name: str, file: Path, count: int) -> dict[str, Any]:
    """Milliseconds a batch, cold and warm, and the bytes that the cold ones had read."""
    with open(file, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    memory = np.memmap(file, np.int16, "c")
    table = torch.from_numpy(memory[: len(memory) // WIDTH * WIDTH]).view(torch.bfloat16).view(-1, WIDTH)
    if name != "plain":
        table = placed("table", table, "resident" if name == "resident" else "mapped")
    if name == "one by one":
        native.READ_AHEAD.discard(table.data_ptr())
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(TOKENS, SLOTS, 1)
    batches = [torch.randint(len(table), (TOKENS, SLOTS), generator=generator) for _ in range(count)]

    def lookups() -> float:
        return 1e3 * median([timed(lambda a=addresses: sparse_lookup(table, a, scores, 1)) for addresses in batches])

    before = bytes_read()
    cold = lookups()
    read = bytes_read() - before
    warm = lookups()
    tokens = 1e3 * TOKENS
    return {
        "name": name,
        "cold_ms": cold,
        "warm_ms": warm,
        "cold_tokens_per_second": tokens / cold,
        "warm_tokens_per_second": tokens / warm,
        "mb_read_a_batch": read / count / 1e6,
    }


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def plot(rows: list[dict[str, Any]]) -> Callable[[Any], None]:
    """Milliseconds a batch, cold beside warm."""

    def draw(axes: Any) -> None:
        names = [row["name"] for row in rows]
        for shift, kind in ((-0.2, "cold_ms"), (0.2, "warm_ms")):
            axes.bar(np.arange(len(names)) + shift, [row[kind] for row in rows], 0.4, label=kind.removesuffix("_ms"))
        axes.set(yscale="log", ylabel="ms a batch", title=f"{TOKENS} tokens, {SLOTS} rows of {2 * WIDTH} bytes")
        axes.set_xticks(np.arange(len(names)), names)
        axes.legend()

    return draw


if __name__ == "__main__":
    main()
