"""Whole models at the paper's shapes, one token a step: dense, mixture of experts (2 of 34), UltraMem, and folded.

    python benchmarks/decode.py            # batches 1 to 512, KV 64 to 2048, P1's three sizes and P2's 227M/1.2B
    python benchmarks/decode.py --quick --json

PyTorch, bfloat16, random weights on one arena of huge pages: the models share the decoder's pages, and experts and
tables lie on the same ones (where oneDNN's order is the experts' fastest, their copies have huge pages of their own, by
a glibc tunable for which the script starts itself again). Dense weights are multiplied alike in all models, by this
package's kernel up to 128 rows (`benchmarks/linear.py`). Steps of all models take turns with new tokens. The folded
tables are expanded rows cut to the unfolded tables' bytes. Of P1's 680M and 1.6B, which do not fit, some blocks and a
memory layer are timed and each part multiplied by its count.

A byte bound is the ratio of the bytes that two models must read in a step. A roofline is the ratio where each part
takes the longer of reading its bytes at the measured bandwidth and of its products at the measured rate.

Needs 6 GB of memory with --quick, else 16 GB; points that need more than 80% of the machine's are left out and listed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import SHORT_WAIT, interleaved, machine, print_json, read_bandwidth
from benchmarks.decode_peers import choose, mixture
from benchmarks.decode_rows import KINDS, Row, plot, report, summary
from benchmarks.decode_shapes import ITEM, LARGER, WHOLE, Arena, Shape, build, step_bytes, step_flops
from benchmarks.decode_steps import PARTS, measure
from benchmarks.results import save
from ultramem_deploy.model.decoder import UltraMemModel
from ultramem_deploy.planning.machine import total_memory

# Between 8 and 64 arithmetic begins to limit the memory models and bytes still limit the mixture: short caches alone.
GRID = [(b, kv) for b in (1, 8, 16, 32, 64, 512) for kv in (64, 256, 2048) if kv == 64 or b not in (16, 32)]
QUICK = [(1, 64), (8, 64), (64, 64)]
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def main() -> None:
    """Measure, print the tables, save the rows, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="151M, batches 1, 8 and 64, KV 64")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    options = parser.parse_args()
    rate = product_rate()
    rows: list[Row] = []
    skipped: list[str] = []
    for shape in (WHOLE,) if options.quick else (WHOLE, *LARGER):
        points, left = fitting(shape, QUICK if options.quick else GRID)
        skipped += left
        rows += run(shape, points, 3.0 if options.quick else 5.0)
    result = summary(rows, rate) | {"machine": machine(), "skipped": skipped}
    if not options.json:
        report(rows, result)
    if not options.quick:
        save("decode", result, [row.saved() for row in rows], plot(rows))
    print_json(result)


def fitting(shape: Shape, points: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[str]]:
    """The points (batch, KV length) for which 80% of memory is enough, and the names of the others."""
    experts = shape.blocks * ITEM * shape.experts * shape.expert_numbers
    weights = shape.arena_bytes() + experts  # once more, in oneDNN's order, where that product is the fastest
    needed = {(batch, kv): weights + 2 * ITEM * shape.blocks * shape.hidden * batch * kv for batch, kv in points}
    room = 0.8 * total_memory()
    names = [f"{shape.name}, batch {b}, KV {k}: {size / 1e9:.0f} GB" for (b, k), size in needed.items() if size > room]
    return [point for point, size in needed.items() if size <= room], names


def run(shape: Shape, points: list[tuple[int, int]], budget: float) -> list[Row]:
    """A row a point, of about `budget` seconds each."""
    if not points:
        return []
    arena = Arena(shape.arena_bytes())
    models = {
        "dense": build(shape.dense(), arena),
        "moe": mixture(shape, arena),
        "unfolded": build(shape.unfolded(), arena),
        "folded": build(shape.folded(), arena),
    }
    rows: list[Row] = []
    chosen: dict[int, str] = {}
    for batch, kv in points:
        if batch not in chosen:
            chosen = {batch: choose(models["moe"], batch)}
        rows.append(measured(shape, models, batch, kv, budget, chosen[batch]))
    return rows


def measured(shape: Shape, models: dict[str, UltraMemModel], batch: int, kv: int, budget: float, product: str) -> Row:
    """One point; the experts multiply by `product` already."""
    layers = [block.mlp for block in models["moe"].model.layers]
    for layer in layers:
        layer.reached = 0
    before = read_bandwidth()
    held, steps = measure(models, batch, kv, budget)
    bandwidth = (before + read_bandwidth()) / 2
    reached = sum(layer.reached for layer in layers) / steps
    rate = reached * shape.expert_numbers * ITEM / held["moe"]["ffn"]
    seconds = {kind: whole(shape, parts) for kind, parts in held.items()}
    counted = {kind: step_bytes(shape, kind, batch, kv) for kind in KINDS}
    flops = {kind: step_flops(shape, kind, batch, kv) for kind in KINDS}
    return Row(shape.name, shape.held, batch, kv, seconds, counted, flops, product, rate, bandwidth)


def whole(shape: Shape, held: dict[str, float]) -> dict[str, float]:
    """Seconds of the whole model's step, from those of the layers that are held."""
    if shape.whole is None:
        return held
    parts = {part: shape.times(part) * held[part] for part in PARTS}
    return parts | {"sparse": parts["ffn"] + parts["memory"], "step": sum(parts.values())}


@torch.inference_mode()
def product_rate(rows: int = 512, repeats: int = 15) -> float:
    """Multiplications and additions a second of a large product of bfloat16: the best."""
    weight, x = torch.rand(4096, 1024).bfloat16(), torch.rand(rows, 1024).bfloat16()
    return 2 * rows * 4096 * 1024 / min(interleaved({"product": lambda: F.linear(x, weight)}, repeats)["product"])


if __name__ == "__main__":
    if HUGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES)))
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.update(SHORT_WAIT | dict(os.environ))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
