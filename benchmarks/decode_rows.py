"""What benchmarks/decode.py measured at one point, and what follows from all points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common import print_table
from benchmarks.decode_peers import LEFT_OUT
from benchmarks.decode_steps import PARTS

KINDS = ("dense", "moe", "unfolded", "folded")
PAPER = 6.0
"""Times as fast as the mixture of experts: P1's largest figure."""


@dataclass(frozen=True)
class Row:
    """One shape, batch and KV length: seconds (medians), bytes and flops of each model by part.

    `timed` says which layers the seconds are of; they, bytes and flops stand for the whole model. `bandwidth` is of
    a sequential read, the mean of just before and just after: on shared machines it changes by half within minutes.
    """

    shape: str
    timed: str
    batch: int
    kv: int
    seconds: dict[str, dict[str, float]]
    bytes: dict[str, dict[str, float]]
    flops: dict[str, dict[str, float]]
    moe_product: str
    moe_expert_bytes_per_second: float
    bandwidth: float

    @property
    def ours(self) -> str:
        """The faster of our two forms."""
        return min(("unfolded", "folded"), key=lambda kind: self.seconds[kind]["step"])

    @property
    def point(self) -> str:
        return f"{self.shape}, batch {self.batch}, KV {self.kv}"

    def speedup(self, part: str = "step", kind: str | None = None, of: str = "moe") -> float:
        return self.seconds[of][part] / self.seconds[kind or self.ours][part]

    def bound(self, part: str = "step", kind: str | None = None) -> float:
        """How many times the bytes of `kind` the mixture of experts reads."""
        experts, own = (sum(self.bytes[k][p] for p in _parts(part)) for k in ("moe", kind or self.ours))
        return experts / own

    def roofline(self, rate: float, part: str = "step") -> float:
        """The ratio where each part of a model takes the longer of reading its bytes and of its arithmetic."""
        experts, own = (
            sum(max(self.bytes[k][p] / self.bandwidth, self.flops[k][p] / rate) for p in _parts(part))
            for k in ("moe", self.ours)
        )
        return experts / own

    def saved(self) -> dict[str, Any]:
        """For a file: everything measured, and the ratios."""
        ratios = {
            kind: {"speedup_vs_moe": self.speedup(kind=kind), "byte_bound": self.bound(kind=kind)} for kind in KINDS
        }
        return asdict(self) | {"form": self.ours, "ratios": ratios}


def _parts(part: str) -> tuple[str, ...]:
    """What counts: a step's parts with bytes of their own, or what stands for the FFNs."""
    return ("ffn", "memory") if part == "sparse" else ("projections", "kv", "ffn", "memory", "head")


def summary(rows: list[Row], rate: float) -> dict[str, Any]:
    """By batch, at the shortest KV length of the first shape: the faster of our forms against mixture and dense."""
    kv = min(row.kv for row in rows)
    shortest = [row for row in rows if row.kv == kv and row.shape == rows[0].shape]
    at = next((row for row in shortest if row.batch == 64), shortest[-1])
    return {
        "speedup_vs_moe": {row.batch: row.speedup() for row in shortest},
        "byte_bound": {row.batch: row.bound() for row in shortest},
        "sparse_part_speedup": {row.batch: row.speedup("sparse") for row in shortest},
        "sparse_part_byte_bound": {row.batch: row.bound("sparse") for row in shortest},
        "roofline": {row.batch: row.roofline(rate) for row in shortest},
        "sparse_part_roofline": {row.batch: row.roofline(rate, "sparse") for row in shortest},
        "flops_per_second": rate,
        "ratio_vs_dense": {row.batch: 1 / row.speedup(of="dense") for row in shortest},
        "form": {row.batch: row.ours for row in shortest},
        "best_moe": at.moe_product,
        "best_moe_by_batch": {row.batch: row.moe_product for row in shortest},
        "moe_left_out": LEFT_OUT,
        "moe_bandwidth_fraction": at.moe_expert_bytes_per_second / at.bandwidth,
        "sequential_bytes_per_second": at.bandwidth,
        "paper_ratio": paper_ratio(rows),
    }


def paper_ratio(rows: list[Row]) -> dict[str, Any]:
    """Where a step is `PAPER` times as fast as the experts', where it is by bytes alone, and the largest of each."""

    def found(ratio: Callable[[Row], float]) -> dict[str, Any]:
        best = max(rows, key=ratio)
        reached = {row.point: ratio(row) for row in rows if ratio(row) >= PAPER}
        return {"reached": reached, "largest": ratio(best), "largest_at": best.point}

    return {"ratio": PAPER, "measured": found(Row.speedup), "byte_bound": found(Row.bound)}


def paper_line(found: dict[str, Any]) -> str:
    """`paper_ratio` in one line."""

    def told(name: str) -> str:
        part = found[name]
        where = "; ".join(f"{point} ({ratio:.2f})" for point, ratio in part["reached"].items())
        return where or f"nowhere, the largest is {part['largest']:.2f} ({part['largest_at']})"

    measured, bound = told("measured"), told("byte_bound")
    return f"{found['ratio']:.0f} times the mixture of experts: measured {measured}; by bytes alone {bound}"


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
    for shape, timed in dict.fromkeys((row.shape, row.timed) for row in rows):
        print(f"{shape}: {timed}")
    print(f"experts at batch 64: {result['best_moe']}, {result['moe_bandwidth_fraction']:.2f} of sequential bandwidth")
    for name, what in (("roofline", "step"), ("sparse_part_roofline", "sparse part")):
        bounds = ", ".join(f"{batch}: {bound:.2f}" for batch, bound in result[name].items())
        print(f"{what}, bound of bytes and arithmetic, by batch: {bounds}")
    for line in result["moe_left_out"]:
        print(f"left out: {line}")
    for line in result["skipped"]:
        print(f"skipped, more than 80% of memory: {line}")
    print(paper_line(result["paper_ratio"]))


def plot(rows: list[Row]) -> Callable[[Any], None]:
    """Speedup over the mixture of experts by batch: a colour a shape, a mark a KV length, byte bounds dashed."""

    def draw(axes: Any) -> None:
        shapes, lengths = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("shape", "kv"))
        for shape, kv in dict.fromkeys((row.shape, row.kv) for row in rows):
            line = [row for row in rows if (row.shape, row.kv) == (shape, kv)]
            batches, colour = [row.batch for row in line], f"C{shapes.index(shape)}"
            mark = "os^Dv"[lengths.index(kv) % 5]
            axes.plot(batches, [row.speedup() for row in line], f"{mark}-", color=colour, label=f"{shape}, KV {kv}")
            axes.plot(batches, [row.bound() for row in line], f"{mark}--", color=colour, linewidth=0.7, markersize=3)
        axes.axhline(PAPER, color="black", linewidth=0.6)
        axes.set(xscale="log", xlabel="batch", ylabel="times as fast as the experts", title="One step, bfloat16")
        axes.legend(fontsize="small")

    return draw
