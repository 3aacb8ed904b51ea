"""Would the gate's row and the value's row side by side in one table be read faster than from two tables?

    python benchmarks/interleaved.py [--quick] [--json] [--threads N]

UltraMemV2's gate (SparseGate on pre-values) and lookup (SparseLookup on values), one after another on the same random
addresses, by our kernels: rows in two tables, and the same bytes as one table of longer rows (the C functions take a
row stride; the operators do not). 2 GiB of distinct bytes, bfloat16 rows, on huge and on ordinary pages. Widths: the
official README's, its v2 script's and its defaults. Layouts take turns; medians.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import click
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import interleaved, machine, median, print_json, print_table
from benchmarks.rows import Rows
from ultramem_deploy.ops import native
from ultramem_deploy.planning.machine import cores

SIZE, ITEM, SLOTS = 2 << 30, 2, 32
WIDTHS = {"README": (192, 192), "run_ultramem_v2.sh": (256, 768), "defaults": (512, 512)}
TOKENS = (1, 64)
BFLOAT16, FLOAT32, GELU = 2, 0, 1


class Pair:
    """Pre-values of `gate` numbers and values of `value` numbers a row, over some bytes in either layout."""

    def __init__(self, held: torch.Tensor, gate: int, value: int) -> None:
        self.held, self.gate, self.value = held, gate, value
        self.rows = held.nbytes // (ITEM * (gate + value))

    def run(self, addresses: torch.Tensor, x: torch.Tensor, scores: torch.Tensor, together: bool) -> torch.Tensor:
        """Gate, then sums [T, value] of its products with scores [T, K]."""
        loaded = native.kernels()
        if loaded is None:
            raise click.ClickException("the native kernels are not there; `ultramem-deploy doctor` says why")
        tokens, slots = addresses.shape
        start, stride = self.held.data_ptr(), self.gate + self.value
        after = ITEM * (self.gate if together else self.gate * self.rows)
        gates, sums = torch.empty(tokens, slots), torch.empty(tokens, self.value)

        def table(data: int, width: int) -> tuple[int, ...]:
            return data, BFLOAT16, self.rows, width, stride if together else width, 0, 0

        tensors = addresses.data_ptr(), x.data_ptr(), gates.data_ptr(), FLOAT32
        loaded.run(loaded.gate, native.GATE.pack(*table(start, self.gate), *tensors, tokens, slots, self.gate, GELU))
        weights = scores * gates
        tensors = addresses.data_ptr(), weights.data_ptr(), sums.data_ptr(), FLOAT32
        lookup = native.LOOKUP.pack(*table(start + after, self.value), *tensors, tokens, slots, 1, 1)
        loaded.run(loaded.lookup, lookup)
        return sums


def ordinary_pages(held: torch.Tensor) -> torch.Tensor:
    """A copy of these bytes on pages of 4 KiB."""
    memory = mmap.mmap(-1, held.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    copied = torch.frombuffer(memory, dtype=torch.uint8)
    return copied.copy_(held)


def measure(pair: Pair, tokens: int, repeats: int) -> dict[str, float]:
    """Nanoseconds a row of both layouts."""
    generator = torch.Generator().manual_seed(0)
    x, scores = torch.rand(tokens, pair.gate), torch.rand(tokens, SLOTS)

    def step(together: bool) -> None:
        pair.run(torch.randint(pair.rows, (tokens, SLOTS), generator=generator), x, scores, together)

    found = interleaved({"two tables": lambda: step(False), "one table": lambda: step(True)}, repeats)
    return {name: 1e9 * median(seconds) / (tokens * SLOTS) for name, seconds in found.items()}


@click.command()
@click.option("--quick", is_flag=True, help="Fewer repeats.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--threads", default=cores, type=int, help="[default: every core]")
@torch.inference_mode()
def main(quick: bool, as_json: bool, threads: int) -> None:
    """Measure what rows of gate and value side by side would win."""
    torch.set_num_threads(threads)
    huge = Rows(SIZE)
    rows: list[dict[str, Any]] = []
    for pages, held in {"huge": huge.bytes, "4 KiB": ordinary_pages(huge.bytes)}.items():
        for name, (gate, value) in WIDTHS.items():
            for tokens in TOKENS:
                found = measure(Pair(held, gate, value), tokens, (4000 // tokens + 40) // (4 if quick else 1))
                ratio = found["two tables"] / found["one table"]
                rows.append({"pages": pages, "widths": f"{gate} + {value} ({name})", "tokens": tokens} | found)
                rows[-1]["ratio"] = ratio
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if as_json:
        best = max(row["ratio"] for row in rows)
        print_json({"rows": rows, "best_ratio": best, "threads": threads, "machine": machine()})


if __name__ == "__main__":
    main()
