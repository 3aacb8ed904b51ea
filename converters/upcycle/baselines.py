"""What the memories of `neurons` are compared with: the dense model, its FFNs cut to fewer neurons in simpler ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.model.ffn import GatedMLP

from .calibration import BlockStatistics, ffns, neuron_values
from .selection import BlockPlan, keep, scores, used

CLUSTER = 32  # neurons that are taken together, where an FFN has many
_ROUNDS = 4

Choice = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""x [T, d] and act(gate) * up, float32 [T, N] -> 1 for the neurons used, else 0, float32 [T, N]."""


class SelectiveFFN(nn.Module):
    """An FFN of which each token uses the neurons that `choose` picks."""

    def __init__(self, mlp: GatedMLP, choose: Choice) -> None:
        super().__init__()
        self.mlp, self.choose = mlp, choose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        _, inner = neuron_values(self.mlp, flat)
        used = inner * self.choose(flat, inner)
        out: torch.Tensor = self.mlp.down_proj(used.to(x.dtype))
        return out.view(x.shape)


@contextmanager
def selective(model: UltraMemModel, choices: list[Choice | None]) -> Iterator[None]:
    """Inside, the FFNs of the dense model use the neurons that `choices` pick; None leaves a block as it is."""
    whole = ffns(model)
    try:
        for layer, mlp, choose in zip(model.model.layers, whole, choices, strict=True):
            if choose is not None:
                layer.mlp = SelectiveFFN(mlp, choose)
        yield
    finally:
        for layer, mlp in zip(model.model.layers, whole, strict=True):
            layer.mlp = mlp


def equal_neurons(plan: BlockPlan, neurons: int) -> int:
    """Whole neurons (three rows each) that cost what a block reads: keys, gates of what is retrieved, values kept."""
    return min(neurons, len(plan.shared) + round((len(plan.slots) + plan.top_m + plan.kept) / 3))


def baselines(
    model: UltraMemModel, plans: list[BlockPlan], statistics: list[BlockStatistics]
) -> dict[str, list[Choice | None]]:
    """Each baseline's choice a block, at the planned block's own number of active parameters."""
    made: dict[str, list[Choice | None]] = {"random_keys": [], "pruned_dense": [], "clusters": []}
    for plan, mlp, block in zip(plans, ffns(model), statistics, strict=True):
        count = equal_neurons(plan, mlp.gate_proj.out_features)
        made["random_keys"].append(_random_keys(plan, mlp) if plan.top_m else None)
        made["pruned_dense"].append(_pruned(block, count) if plan.top_m else None)
        made["clusters"].append(_clusters(mlp, count) if plan.top_m else None)
    return made


def oracle(mlp: GatedMLP, count: int) -> Choice:
    """The neurons that add most to the output, known exactly: the ceiling."""
    norms = mlp.down_proj.weight.float().norm(dim=0)
    return lambda x, inner: keep(inner.abs() * norms, count)


def fitted(mlp: GatedMLP, scale: torch.Tensor, top_m: int, kept: int) -> Choice:
    """What a memory with the scales of `selection.key_scales` retrieves and keeps."""
    return lambda x, inner: used(scores(mlp, scale, x), neuron_values(mlp, x)[0], top_m, kept)


def _random_keys(plan: BlockPlan, mlp: GatedMLP) -> Choice:
    """The plan's memory retrieving by random keys, keeping the largest of what it finds; the shared neurons stay."""
    generator = torch.Generator().manual_seed(plan.block)
    weight = mlp.up_proj.weight
    keys = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    norms = mlp.down_proj.weight.float().norm(dim=0)

    def choose(x: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        score = F.linear(x, keys).float().abs()
        score[:, plan.shared] = torch.inf
        candidates = keep(score, len(plan.shared) + plan.top_m)
        size = inner.abs() * norms * candidates
        size[:, plan.shared] = torch.inf
        return keep(size, len(plan.shared) + plan.kept)

    return choose


def _pruned(block: BlockStatistics, count: int) -> Choice:
    """The neurons that add most on average, whatever the token: a smaller dense FFN."""
    mask = keep(block.mean_importance[None].float(), count)
    return lambda x, inner: mask.expand_as(inner)


def _clusters(mlp: GatedMLP, count: int) -> Choice:
    """MoEfication (arXiv 2110.01786): balanced clusters of gate rows, chosen by their centres' product with x.

    The gates' silu(centre) stands for the ReLU score there; clusters are added up to `count` neurons.
    """
    rows = F.normalize(mlp.gate_proj.weight.float(), dim=1)
    groups = max(1, len(rows) // CLUSTER, min(len(rows), 8))
    member = balanced_clusters(rows, groups)
    centres = torch.zeros(groups, rows.shape[1]).index_add_(0, member, mlp.gate_proj.weight.float())
    sizes = torch.bincount(member, minlength=groups).float()
    centres /= sizes[:, None]
    taken = max(1, round(count / float(sizes.mean())))

    def choose(x: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return keep(F.linear(x.float(), centres), taken)[:, member]

    return choose


def balanced_clusters(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """k-means of unit rows [N, d] with at most ceil(N / groups) members each: the group of every row, int64 [N]."""
    generator = torch.Generator().manual_seed(0)
    centres = rows[torch.randperm(len(rows), generator=generator)[:groups]]
    member = torch.zeros(len(rows), dtype=torch.int64)
    for _ in range(_ROUNDS):
        member = _fill(rows @ centres.T, -(-len(rows) // groups))
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, member, rows), dim=1)
    return member


def _fill(likeness: torch.Tensor, room: int) -> torch.Tensor:
    """Every row to its best group that has room; a full group keeps those that like it most."""
    member = torch.full((len(likeness),), -1)
    likeness = likeness.clone()
    left = torch.full((likeness.shape[1],), room)
    while (free := (member < 0).nonzero()[:, 0]).numel():
        best, wanted = likeness[free].max(1)
        for group in set(wanted.tolist()):
            asking = free[wanted == group]
            order = best[wanted == group].argsort(descending=True)[: int(left[group])]
            member[asking[order]] = group
            left[group] -= len(order)
            if left[group] == 0:
                likeness[:, group] = -torch.inf
    return member
