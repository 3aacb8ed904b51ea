"""A mixture of experts as fast as PyTorch makes it on a CPU, in bfloat16: four ways to multiply rows by experts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.decode_shapes import ACTIVE, EXPERTS, Arena, Shape, build
from ultramem_deploy.model.decoder import UltraMemModel

Weights = torch.Tensor | Sequence[torch.Tensor]
Product = Callable[[torch.Tensor, torch.Tensor, Weights, Weights], torch.Tensor]
ROWS_AN_EXPERT = 4
"""Told to oneDNN as it lays weights out: batch 64, two of 34 experts a token."""


def activated(hidden: torch.Tensor) -> torch.Tensor:
    """SwiGLU of gate and up side by side."""
    gate, up = hidden.chunk(2, -1)
    return F.silu(gate) * up


def one_by_one(rows: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """One product an expert that has rows."""
    parts = zip(rows.split(counts.tolist()), gate_up, down, strict=True)
    return torch.cat([F.linear(activated(F.linear(x, up)), out) for x, up, out in parts if len(x)])


def prepacked(rows: torch.Tensor, counts: torch.Tensor, gate_up: Weights, down: Weights) -> torch.Tensor:
    """One product an expert that has rows, of weights that `GroupedExperts.packed` laid out beforehand."""
    linear = torch.ops.mkldnn._linear_pointwise
    parts = [part for part in zip(rows.split(counts.tolist()), gate_up, down, strict=True) if len(part[0])]
    plain: tuple[object, ...] = (None, "none", [], "")
    return torch.cat([linear(activated(linear(x, up, *plain)), out, *plain) for x, up, out in parts])


def grouped(rows: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """PyTorch's grouped_mm."""
    ends = counts.cumsum(0).int()
    hidden = activated(F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends))
    return F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)


def padded(rows: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """One batched product, every expert padded to the rows of the busiest."""
    expert = torch.repeat_interleave(torch.arange(len(counts)), counts)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[expert]
    filled = rows.new_zeros(len(counts), int(counts.max()), rows.shape[1])
    filled[expert, place] = rows
    hidden = activated(torch.bmm(filled, gate_up.transpose(1, 2)))
    return torch.bmm(hidden, down.transpose(1, 2))[expert, place]


PRODUCTS: dict[str, Product] = {"one GEMM an expert": one_by_one, "grouped_mm": grouped, "padded bmm": padded}
if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    PRODUCTS["one prepacked GEMM an expert"] = prepacked


class GroupedExperts(nn.Module):
    """Experts side by side: gate and up [E, 2w, d], down [E, d, w]; softmax router [E, d], best two, normalised.

    `reached` counts the experts that had a token since it was last set to 0.
    """

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, router: torch.Tensor) -> None:
        super().__init__()
        self.gate_up, self.down, self.router = gate_up, down, router
        self.product: Product = one_by_one
        self.reached = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., d] -> [..., d]."""
        flat = x.flatten(0, -2)
        weights, chosen = F.linear(flat, self.router).float().softmax(-1).topk(ACTIVE, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype).flatten()
        order = chosen.flatten().argsort()
        tokens = order // ACTIVE
        counts = torch.bincount(chosen.flatten(), minlength=len(self.router))
        self.reached += int((counts > 0).sum())
        held = self.packed if self.product is prepacked else (self.gate_up, self.down)
        rows = self.product(flat[tokens], counts, *held) * weights[order, None]
        return torch.zeros_like(flat).index_add_(0, tokens, rows).view_as(x)

    @cached_property
    def packed(self) -> tuple[Sequence[torch.Tensor], ...]:
        """A second copy of the weights, each expert's in oneDNN's own order."""
        pack = torch.ops.mkldnn._reorder_linear_weight
        return tuple([pack(weight, ROWS_AN_EXPERT) for weight in stack] for stack in (self.gate_up, self.down))


def mixture(shape: Shape, arena: Arena) -> UltraMemModel:
    """The dense decoder with experts for FFNs, on the pages where the other models have their tables."""
    model = build(shape.dense(), arena)
    width, d = shape.expert_width, shape.hidden
    for block in model.model.layers:
        parts = ((EXPERTS, 2 * width, d), (EXPERTS, d, width), (EXPERTS, d))
        block.mlp = GroupedExperts(*(arena.take(*part) for part in parts))
    return model


@torch.inference_mode()
def choose(model: UltraMemModel, batch: int, repeats: int = 6) -> str:
    """Give all experts of `model` the product that is fastest at this batch; its name.

    Blocks and products take turns; the best time of each counts, because a choice must not follow a machine's stalls.
    """
    layers = [block.mlp for block in model.model.layers]
    if prepacked in PRODUCTS.values():
        for layer in layers:
            layer.packed  # noqa: B018  # laid out now, not while the clock runs
    seconds: dict[str, list[float]] = {name: [] for name in PRODUCTS}
    for repeat in range(repeats):
        for place, (name, product) in enumerate(PRODUCTS.items()):
            layer = layers[(repeat * len(PRODUCTS) + place) % len(layers)]
            layer.product = product
            x = torch.randn(batch, layer.router.shape[1]).bfloat16()
            start = time.perf_counter()
            layer(x)
            seconds[name].append(time.perf_counter() - start)
    best = min(seconds, key=lambda name: min(seconds[name][1:]))
    for layer in layers:
        layer.product = PRODUCTS[best]
    return best
