"""Which neurons a token uses: key scales, the error of every fraction, and the neurons that each block gets.

Slot n scores s_n |<up_n, x>| with s_n = E|act(<gate_n, x>)| |down_n|: what the neuron adds to the output, with its gate
taken for the mean one. Why the up row and not the gate row is the key: see docs/upcycling.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ultramem_deploy.errors import InputError
from ultramem_deploy.model.ffn import GatedMLP

from .calibration import BlockStatistics, neuron_values

STEPS = 16  # fractions tried are multiples of 1/16


@dataclass(frozen=True)
class BlockPlan:
    """What becomes of one FFN: `shared` neurons stay dense, `slots` become a memory.

    A token retrieves `top_m` slots by their keys and sums the `kept` whose weight is largest.
    shared, slots: int64, ascending; scale: float64, one a slot; rank: parts of the memory's key grid; error: expected
    relative output error on the calibration text. A block with no slots keeps its FFN.
    """

    block: int
    shared: torch.Tensor
    slots: torch.Tensor
    scale: torch.Tensor
    top_m: int
    kept: int
    rank: int
    error: float


def key_scales(mlp: GatedMLP, statistics: BlockStatistics, exact: bool) -> torch.Tensor:
    """s_n, float64 [N], about 1 in the middle; powers of two where `exact`, so that no weight is rounded.

    Elsewhere they are rounded to an eighth of an octave: the last bits of a sum depend on the machine's threads.
    """
    weight: torch.Tensor = statistics.mean_gate * mlp.down_proj.weight.double().norm(dim=0)
    steps = 1 if exact else 8
    octaves: torch.Tensor = torch.log2(weight.clamp(min=1e-30) / weight.median().clamp(min=1e-30)).clamp(-24, 24)
    scale: torch.Tensor = torch.exp2((octaves * steps).round() / steps)
    return scale


def scores(mlp: GatedMLP, scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What retrieval compares, float32 [T, N]."""
    score: torch.Tensor = mlp.up_proj(x).float().abs() * scale.float()
    return score


def keep(score: torch.Tensor, count: int) -> torch.Tensor:
    """1 at the `count` largest of every row, else 0, float32 [T, N]."""
    return torch.zeros_like(score).scatter_(1, score.topk(count, dim=1).indices, 1.0)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean over tokens of |found - wanted|^2 / |wanted|^2, of [T, d]."""
    squares = wanted.square().sum(1)
    part: torch.Tensor = (found - wanted).square().sum(1) / squares.clamp(min=torch.finfo(squares.dtype).tiny)
    return float(part.mean())


def used(score: torch.Tensor, gate: torch.Tensor, retrieved: int, count: int) -> torch.Tensor:
    """1 at the neurons summed: of the `retrieved` best by score [T, N], the `count` largest by score times |gate|."""
    candidates = keep(score, retrieved)
    return candidates if count >= retrieved else keep(candidates * score * gate.abs(), count)


@torch.no_grad()
def error_curve(
    mlp: GatedMLP, scale: torch.Tensor, shared: torch.Tensor, x: torch.Tensor, counts: list[tuple[int, int]]
) -> list[float]:
    """The relative output error over tokens x [T, d] for each pair of slots retrieved and kept beside the shared."""
    gate, inner = neuron_values(mlp, x)
    slots = torch.ones(len(scale), dtype=torch.bool).index_fill_(0, shared, False)
    score, gate, inner = scores(mlp, scale, x)[:, slots], gate[:, slots], inner[:, slots]
    down = mlp.down_proj.weight.float()[:, slots]
    whole, part = mlp(x), F.linear(inner, down)
    return [
        0.0
        if count >= score.shape[1]
        else relative_error(whole - part + F.linear(inner * used(score, gate, retrieved, count), down), whole)
        for retrieved, count in counts
    ]


def parts(slots: int, top_m: int) -> int | None:
    """R: the fewest equal parts of the slots of which none, nor both signs of all, exceeds top-m; None if none fits."""
    fits = (r for r in range(1, slots + 1) if slots % r == 0 and slots // r <= top_m and 2 * r <= top_m)
    return next(fits, None)


def retrieved(slots: int, count: int, factor: float) -> int:
    """Slots retrieved for `count` that are kept."""
    return min(slots, round(factor * count))


def spread_evenly(curves: list[dict[int, float]], wanted: int) -> list[int]:
    """The same count for every block: the smallest allowed one that is at least `wanted`."""
    return [next(count for count in sorted(curve) if count >= wanted) for curve in curves]


def spread_by_error(curves: list[dict[int, float]], wanted: int) -> list[int]:
    """Counts of mean at most `wanted`, but at least each block's smallest: always the step that saves most a neuron.

    Steps may be several counts wide, so that a flat one does not hide a steep one behind it.
    """
    chosen = [min(curve) for curve in curves]
    left = wanted * len(curves) - sum(chosen)
    while True:
        steps = [
            ((curve[now] - curve[then]) / (then - now), block, then)
            for block, (curve, now) in enumerate(zip(curves, chosen, strict=True))
            for then in curve
            if now < then <= now + left
        ]
        if not steps:
            return chosen
        _, block, then = max(steps)
        left -= then - chosen[block]
        chosen[block] = then


def within_budget(curves: list[dict[int, float]], budget: float) -> list[int]:
    """For every block the smallest count whose error is within the budget."""
    return [min(count for count, error in curve.items() if error <= budget) for curve in curves]


def grid_counts(neurons: int, shared: int, factor: float) -> list[int]:
    """Counts of a token's memory neurons to choose from: multiples of 1/16 of all neurons, less the shared ones.

    Only those that some key grid serves. Raises InputError where not even all slots can be taken.
    """
    slots = neurons - shared
    tried = {round(neurons * step / STEPS) - shared for step in range(1, STEPS + 1)}
    possible = sorted(count for count in tried if 0 < count <= slots)
    counts = [count for count in possible if parts(slots, retrieved(slots, count, factor)) is not None]
    if slots not in counts:
        raise InputError(f"upcycle: {slots} neurons of a block are too few for a memory; choose a smaller --shared")
    return counts
