"""Dense bfloat16 weights in oneDNN's own order, which products of few rows read at up to twice the speed."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import InputError
from .decoder import UltraMemModel

ROWS = 8
"""Told to oneDNN as it lays weights out; one order served 1 to 64 rows within a few percent."""


class PackedLinear(nn.Module):
    """`nn.Linear` of a weight [out, in], bfloat16, that is kept in oneDNN's order alone; its own memory."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack(model: UltraMemModel) -> UltraMemModel:
    """Replace the linear layers, the output head and the keys of memory layers; returns `model`, for inference alone.

    Takes as much memory as these weights have. Raises InputError where they are not bfloat16 on a CPU that can
    multiply it.
    """
    weight = model.model.embed_tokens.weight
    able = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not able:
        raise InputError(
            f"pack: expected bfloat16 weights on a CPU with bfloat16 products, found {weight.dtype} on "
            f"{weight.device.type}; load with dtype='bfloat16', or without pack"
        )
    for layer in model.memory_layers:
        layer.pack_keys(PackedLinear)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child.weight.dtype == torch.bfloat16:
                setattr(module, name, PackedLinear(child.weight, child.bias))
    if model.spec.decoder.tie_embeddings:
        model.add_module("lm_head", PackedLinear(weight))
    return model
