"""What packing hot rows together (`fold --order frequency`) gives: TLB misses in memory, bytes and time from the disk.

    python benchmarks/order.py [--quick] [--json] [--directory DIR] [--exponent S]

Batches of 64 tokens of 32 rows of 1 KiB, drawn by Zipf's law over the table: rank r with weight r^-S. "scattered" has
the ranks in random order, as training leaves them; "by frequency" has them in order. In memory the table lies on
ordinary pages and on huge ones; on the disk it is mapped and evicted first (posix_fadvise), and the bytes read are
counted. TLB misses are the processor's own count of loads (perf_event_open), where it is to be had.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import workspace
from benchmarks.common import bytes_read, machine, median, print_json, print_table
from benchmarks.mapped import SLOTS, TOKENS, WIDTH, timed, write
from benchmarks.results import save
from ultramem_deploy.ops.placement import placed
from ultramem_deploy.ops.sparse_lookup import sparse_lookup

PERF_EVENT_OPEN = 298  # x86-64
DATA_TLB_READ_MISSES = 3 | 1 << 16
USER_ONLY = 1 << 5 | 1 << 6  # exclude_kernel, exclude_hv


@click.command()
@click.option("--quick", is_flag=True, help="Fewer batches of a smaller table.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where the file lies.")
@click.option("--exponent", default=1.0, show_default=True, help="Of Zipf's law; 0 has every row alike.")
@torch.inference_mode()
def main(quick: bool, as_json: bool, directory: Path, exponent: float) -> None:
    """Measure scattered rows against rows by frequency."""
    torch.set_num_threads(1)  # a counter counts its own thread
    size, count = (2 if quick else 8) * 10**9, 20 if quick else 100
    with workspace(directory, size + 10**9, "order") as folder:
        file = write(folder / "table", size)
        ranks = drawn(size // (2 * WIDTH), count, exponent)
        scattered = torch.randperm(size // (2 * WIDTH), generator=torch.Generator().manual_seed(2))
        orders = {"scattered": [scattered[batch] for batch in ranks], "by frequency": ranks}
        rows = [measure(name, where, file, batches) for where in ("disk", "ordinary pages", "huge pages")
                for name, batches in orders.items()]  # fmt: skip
    result = {"rows": rows, "exponent": exponent, "table_gb": size / 1e9, "machine": machine()}
    for where in ("disk", "ordinary pages", "huge pages"):
        before, after = (row["ms_a_batch"] for row in rows if row["where"] == where)
        result[f"speedup_{where.replace(' ', '_')}"] = before / after
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if not quick:
        save("order", result, rows, lambda axes: draw(axes, rows))
    if as_json:
        print_json(result)


def drawn(rows: int, count: int, exponent: float) -> list[torch.Tensor]:
    """Batches of ranks int64 [tokens, slots] by Zipf's law."""
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    chances = np.random.default_rng(1).random((count, TOKENS, SLOTS)) * weights[-1]
    return [torch.from_numpy(np.searchsorted(weights, batch)) for batch in chances]


def measure(name: str, where: str, file: Path, batches: list[torch.Tensor]) -> dict[str, Any]:
    """Milliseconds a batch (median), TLB misses a row and megabytes read a batch."""
    with open(file, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    memory = np.memmap(file, np.int16, "c")
    table = torch.from_numpy(memory[: len(memory) // WIDTH * WIDTH]).view(torch.bfloat16).view(-1, WIDTH)
    if where == "ordinary pages":
        table = table.clone()
    else:
        table = placed("table", table, "resident" if where == "huge pages" else "mapped")
    scores, counter, before = torch.rand(TOKENS, SLOTS, 1), TlbMisses(), bytes_read()
    seconds, misses = [], []
    for batch in batches:
        start = counter.read()
        seconds.append(timed(lambda a=batch: sparse_lookup(table, a, scores, 1)))
        misses.append((counter.read() - start) / batch.numel())
    counter.close()
    read = (bytes_read() - before) / len(batches) / 1e6
    return {
        "where": where,
        "order": name,
        "ms_a_batch": median(seconds) * 1e3,
        "tlb_misses_a_row": median(misses) if counter.there else None,
        "mb_read_a_batch": read,
    }


class TlbMisses:
    """This thread's loads that missed the data TLB, in user space; `there` is False where nothing counts them."""

    def __init__(self) -> None:
        # struct perf_event_attr: type PERF_TYPE_HW_CACHE, size, config; the flags follow four 64-bit fields.
        attributes = struct.pack("@IIQQQQQ", 3, 128, DATA_TLB_READ_MISSES, 0, 0, 0, USER_ONLY).ljust(128, b"\0")
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._file = syscall(PERF_EVENT_OPEN, attributes, 0, -1, -1, 0)
        self.there = self._file >= 0

    def read(self) -> int:
        return struct.unpack("@Q", os.read(self._file, 8))[0] if self.there else 0

    def close(self) -> None:
        if self.there:
            os.close(self._file)


def draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Milliseconds a batch, a bar for each place and order."""
    axes.bar([f"{row['where']}\n{row['order']}" for row in rows], [row["ms_a_batch"] for row in rows])
    axes.set(yscale="log", ylabel="ms a batch", title=f"{TOKENS} tokens, {SLOTS} rows of {2 * WIDTH} bytes, Zipf")
    axes.tick_params(axis="x", labelsize=7)


if __name__ == "__main__":
    main()
