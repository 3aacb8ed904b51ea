"""Whole models at the paper's shapes, one token a step: dense, mixture of experts (2 of 34), UltraMem, and folded.

    python benchmarks/decode.py            # batches 1 to 512, KV 64 to 2048, and slices of larger models
    python benchmarks/decode.py --quick --json

PyTorch, bfloat16, random weights on one arena of huge pages: the models share the decoder's pages, and experts and
tables lie on the same ones (oneDNN's copies have huge pages of their own, by a glibc tunable for which the script
starts itself again). All keep their dense weights in oneDNN's order (`load(pack=True)`), which halves the time of
products of few rows; the decoder's are laid out once for all. Steps of all models take turns with new tokens. A byte
bound is the ratio of the bytes that two models must read in a step. The folded tables are expanded rows cut to the
unfolded tables' bytes. The sparse part's roofline is the ratio where each side takes the longer of its bytes at the
measured bandwidth and of its products at the measured rate. Needs 8 GB of
memory with --quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import interleaved, machine, print_json, print_table, read_bandwidth
from benchmarks.decode_peers import LEFT_OUT, choose, mixture
from benchmarks.decode_shapes import EXPERTS, ITEM, SLICES, WHOLE, Arena, Shape, build, sparse, sparse_flops, step_bytes
from benchmarks.decode_steps import PARTS, measure
from benchmarks.results import save
from ultramem_deploy.model.decoder import UltraMemModel
from ultramem_deploy.model.ffn import GatedMLP
from ultramem_deploy.model.packing import PackedLinear, pack
from ultramem_deploy.planning.machine import total_memory

BATCHES, HISTORIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (64, 256, 2048)
QUICK = ((1, 64), (8, 64), (64, 64))
HUGE_PAGES = "glibc.malloc.hugetlb=1"
KINDS = ("dense", "moe", "unfolded", "folded")


@dataclass(frozen=True)
class Row:
    """One shape, batch and KV length: seconds (medians) and bytes by part, and the sparse part's flops."""

    shape: str
    batch: int
    kv: int
    seconds: dict[str, dict[str, float]]
    bytes: dict[str, dict[str, float]]
    flops: dict[str, float]
    moe_product: str
    moe_expert_bytes_per_second: float

    @property
    def ours(self) -> str:
        """The faster of our two forms."""
        return min(("unfolded", "folded"), key=lambda kind: self.seconds[kind]["step"])

    def speedup(self, part: str = "step", kind: str | None = None, of: str = "moe") -> float:
        return self.seconds[of][part] / self.seconds[kind or self.ours][part]

    def roofline(self, bandwidth: float, rate: float) -> float:
        """The sparse part's ratio where each side takes the longer of reading its bytes and of its arithmetic."""
        experts, own = (
            max(sparse(self.bytes[kind]) / bandwidth, self.flops[kind] / rate) for kind in ("moe", self.ours)
        )
        return experts / own

    def bound(self, part: str = "step", kind: str | None = None) -> float:
        """How many times the bytes of `kind` the mixture of experts reads."""
        count = sparse if part == "sparse" else lambda parts: sum(parts.values())
        return count(self.bytes["moe"]) / count(self.bytes[kind or self.ours])


def main() -> None:
    """Measure, print the tables, save the rows, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="151M, batches 1, 8 and 64, KV 64")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    options = parser.parse_args()
    bandwidth = read_bandwidth()
    rows, skipped = run(WHOLE, QUICK if options.quick else grid(), 3.0 if options.quick else 8.0)
    result = summary(rows, bandwidth, product_rate()) | {"machine": machine(), "skipped": skipped}
    if not options.quick:
        for shape in SLICES:
            more, left = run(shape, [(batch, 64) for batch in BATCHES], 8.0)
            rows, result["skipped"] = rows + more, result["skipped"] + left
    if not options.json:
        report(rows, result)
    if not options.quick:
        save("decode", result, [asdict(row) for row in rows], plot(rows))
    print_json(result)


def grid() -> list[tuple[int, int]]:
    return [(batch, kv) for kv in HISTORIES for batch in BATCHES]


def run(shape: Shape, points: list[tuple[int, int]] | tuple[tuple[int, int], ...], budget: float) -> Any:
    """Rows of every point that fits into 80% of memory, and the names of the others."""

    def needed(batch: int, kv: int) -> float:
        packed = ITEM * shape.blocks * EXPERTS * shape.expert_numbers
        return shape.arena_bytes() + packed + step_bytes(shape, "dense", batch, kv)["kv"]

    room = 0.8 * total_memory()
    kept = [point for point in points if needed(*point) <= room]
    skipped = [f"{shape.name}, batch {b}, KV {k}: {needed(b, k) / 1e9:.0f} GB" for b, k in points if (b, k) not in kept]
    if not kept:
        return [], skipped
    arena = Arena(shape.arena_bytes())
    models = {
        "dense": build(shape.dense(), arena),
        "moe": mixture(shape, arena),
        "unfolded": build(shape.unfolded(), arena),
        "folded": build(shape.folded(), arena),
    }
    pack_all(models)
    return [measured(shape, models, batch, kv, budget) for batch, kv in kept], skipped


def pack_all(models: dict[str, UltraMemModel]) -> None:
    """Lay dense weights out for oneDNN; the decoder's, which all models share, once."""
    dense = pack(models.pop("dense"))
    for model in models.values():
        model.model.embed_tokens.weight = dense.model.embed_tokens.weight
        for block, packed in zip(model.model.layers, dense.model.layers, strict=True):
            block.self_attn = packed.self_attn
            if isinstance(block.mlp, GatedMLP):
                block.mlp = packed.mlp
        pack(model)
        model.lm_head = dense.lm_head
    models["dense"] = dense


def measured(shape: Shape, models: dict[str, UltraMemModel], batch: int, kv: int, budget: float) -> Row:
    product = choose(models["moe"], batch)
    layers = [block.mlp for block in models["moe"].model.layers]
    for layer in layers:
        layer.reached = 0
    seconds, steps = measure(models, batch, kv, budget)
    reached = sum(layer.reached for layer in layers) / steps
    rate = reached * shape.expert_numbers * ITEM / seconds["moe"]["ffn"]
    counted = {kind: step_bytes(shape, kind, batch, kv) for kind in KINDS}
    flops = {kind: sparse_flops(shape, kind, batch) for kind in KINDS}
    return Row(shape.name, batch, kv, seconds, counted, flops, product, rate)


@torch.inference_mode()
def product_rate(rows: int = 512, repeats: int = 15) -> float:
    """Multiplications and additions a second of a large product of bfloat16 weights in oneDNN's order: the best."""
    layer, x = PackedLinear(torch.rand(4096, 1024).bfloat16()), torch.rand(rows, 1024).bfloat16()
    return 2 * rows * 4096 * 1024 / min(interleaved({"product": lambda: layer(x)}, repeats)["product"])


def summary(rows: list[Row], bandwidth: float, rate: float) -> dict[str, Any]:
    """By batch at the shortest KV length: the faster of our two forms against the mixture of experts and the dense."""
    shortest = [row for row in rows if row.kv == min(row.kv for row in rows)]
    at = next((row for row in shortest if row.batch == 64), shortest[-1])
    return {
        "speedup_vs_moe": {row.batch: row.speedup() for row in shortest},
        "byte_bound": {row.batch: row.bound() for row in shortest},
        "sparse_part_speedup": {row.batch: row.speedup("sparse") for row in shortest},
        "sparse_part_byte_bound": {row.batch: row.bound("sparse") for row in shortest},
        "sparse_part_roofline": {row.batch: row.roofline(bandwidth, rate) for row in shortest},
        "flops_per_second": rate,
        "ratio_vs_dense": {row.batch: 1 / row.speedup(of="dense") for row in shortest},
        "form": {row.batch: row.ours for row in shortest},
        "best_moe": at.moe_product,
        "moe_left_out": LEFT_OUT,
        "best_moe_by_batch": {row.batch: row.moe_product for row in shortest},
        "moe_bandwidth_fraction": at.moe_expert_bytes_per_second / bandwidth,
        "sequential_bytes_per_second": bandwidth,
    }


def report(rows: list[Row], result: dict[str, Any]) -> None:
    """Milliseconds by part, and each form's ratio beside its byte bound."""
    lines = []
    for row in rows:
        for kind in KINDS:
            times = [1e3 * row.seconds[kind][part] for part in ("step", *PARTS)]
            ratios = [row.speedup(kind=kind), row.bound(kind=kind), row.speedup("sparse", kind)]
            lines.append([row.shape, row.batch, row.kv, kind, *times, *ratios, row.bound("sparse", kind)])
    header = ["shape", "batch", "KV", "model", "ms", *PARTS, "of moe", "bound", "sparse", "bound"]
    print_table(header, lines)
    best = max(rows, key=Row.speedup)
    print(f"largest ratio: {best.speedup():.2f} ({best.shape}, batch {best.batch}, KV {best.kv}, {best.ours})")
    print(f"experts at batch 64: {result['best_moe']}, {result['moe_bandwidth_fraction']:.2f} of sequential bandwidth")
    roofline = ", ".join(f"{batch}: {bound:.2f}" for batch, bound in result["sparse_part_roofline"].items())
    print(f"sparse part, bytes and arithmetic, by batch: {roofline}")
    for line in result["moe_left_out"]:
        print(f"left out: {line}")
    for line in result["skipped"]:
        print(f"skipped, more than 80% of memory: {line}")


def plot(rows: list[Row]) -> Callable[[Any], None]:
    """Speedup over the mixture of experts by batch, a line a shape and KV length, byte bounds dashed."""

    def draw(axes: Any) -> None:
        for shape, kv in dict.fromkeys((row.shape, row.kv) for row in rows):
            line = [row for row in rows if (row.shape, row.kv) == (shape, kv)]
            batches = [row.batch for row in line]
            drawn = axes.plot(batches, [row.speedup() for row in line], "o-", label=f"{shape}, KV {kv}")
            axes.plot(batches, [row.bound() for row in line], "--", color=drawn[0].get_color(), linewidth=0.8)
        axes.set(xscale="log", xlabel="batch", ylabel="times as fast as the experts", title="One step, bfloat16")
        axes.legend()

    return draw


if __name__ == "__main__":
    if HUGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES)))
        # Threads that spin where others want their core make every small operation wait for the scheduler.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
