"""A mixture of experts as fast as it goes on a CPU, in bfloat16: PyTorch's four ways and a kernel for few rows each."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from functools import cache, cached_property

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.decode_shapes import ACTIVE, Arena, Shape, build
from benchmarks.native import Tasks, compiler
from ultramem_deploy.model.decoder import UltraMemModel

Weights = torch.Tensor | Sequence[torch.Tensor]
Product = Callable[[torch.Tensor, torch.Tensor, Weights, Weights], torch.Tensor]
ROWS_AN_EXPERT = 4
"""Told to oneDNN as it lays weights out: batch 64, two of 34 experts a token."""
TRIED_BYTES = 512 << 20
"""Products are tried on so many experts, more than a cache holds."""
PARTS_OF_EXPERT = 8
"""Tasks that the kernel makes of each expert, so that threads end together."""


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


class Grouped(ctypes.Structure):
    """Grouped of grouped.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("rows", "ends", "weights", "output")),
        *((name, c_int64) for name in ("experts", "columns", "depth", "parts")),
    )


def streamed(rows: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """A kernel that reads each expert's weights once, in place, for all of its rows; widths are multiples of 4."""
    ends = counts.cumsum(0)
    return _grouped_product(activated(_grouped_product(rows, ends, gate_up)), ends, down)


def _grouped_product(rows: torch.Tensor, ends: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """rows [n, depth] sorted by expert, ends [E], weights [E, columns, depth] -> [n, columns]."""
    experts, columns, depth = weights.shape
    if columns % 4 or not (rows.is_contiguous() and weights.is_contiguous()):
        raise ValueError(f"weights {tuple(weights.shape)}: expected whole groups of 4 columns, all contiguous")
    output = rows.new_empty(len(rows), columns)
    pointers = [x.data_ptr() for x in (rows, ends, weights, output)]
    problem = Grouped(*pointers, experts, columns, depth, PARTS_OF_EXPERT)
    _kernel().run("grouped_task", problem, experts * PARTS_OF_EXPERT)
    return output


@cache
def _kernel() -> Tasks:
    return Tasks("grouped.cpp", ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"))


PRODUCTS: dict[str, Product] = {"one GEMM an expert": one_by_one, "grouped_mm": grouped, "padded bmm": padded}
if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    PRODUCTS["one prepacked GEMM an expert"] = prepacked
LEFT_OUT: list[str] = []
"""Products that cannot run here, and why."""
if not torch.cpu._is_avx512_bf16_supported():
    LEFT_OUT.append("a streaming kernel: the processor has no AVX512-BF16")
elif compiler() is None:
    LEFT_OUT.append("a streaming kernel: no C++ compiler (c++) was found")
else:
    PRODUCTS["a streaming kernel"] = streamed


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
        parts = ((shape.experts, 2 * width, d), (shape.experts, d, width), (shape.experts, d))
        block.mlp = GroupedExperts(*(arena.take(*part) for part in parts))
    return model


@torch.inference_mode()
def choose(model: UltraMemModel, batch: int, repeats: int = 6) -> str:
    """Give all experts of `model` the product that is fastest at this batch; its name.

    Blocks and products take turns; the best time of each counts, because a choice must not follow a machine's stalls.
    The second copy of the weights that one product wants is kept for that product alone.
    """
    layers = [block.mlp for block in model.model.layers]
    tried = layers[: -(-TRIED_BYTES // (layers[0].gate_up.nbytes + layers[0].down.nbytes))]
    _lay_out(tried if prepacked in PRODUCTS.values() else [])
    seconds: dict[str, list[float]] = {name: [] for name in PRODUCTS}
    best = next(iter(PRODUCTS))
    for repeat in range(repeats):
        for place, (name, product) in enumerate(PRODUCTS.items()):
            if repeat > 2 and min(seconds[name][1:]) > 2 * min(seconds[best][1:]):
                continue
            layer = tried[(repeat + place) % len(tried)]
            layer.product = product
            x = torch.randn(batch, layer.router.shape[1]).bfloat16()
            start = time.perf_counter()
            layer(x)
            seconds[name].append(time.perf_counter() - start)
        best = min(seconds, key=lambda name: min(seconds[name][1:] or seconds[name]))
    for layer in layers:
        layer.product = PRODUCTS[best]
        if layer.product is not prepacked:
            layer.__dict__.pop("packed", None)
    _lay_out(layers if PRODUCTS[best] is prepacked else [])
    return best


def _lay_out(layers: list[GroupedExperts]) -> None:
    """Before the clock runs."""
    for layer in layers:
        layer.packed  # noqa: B018  # a cached property
