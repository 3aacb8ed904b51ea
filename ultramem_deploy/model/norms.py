"""RMSNorm and LayerNorm, computed in float32 and returned in the dtype of the input."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..spec import NormSpec


class Norm(nn.Module):
    """Normalises the last axis of width `width`; the weight is applied after the cast back, as transformers does.

    A weight that counts from one (`unit_offset`, Gemma) is applied before it, as there.
    """

    def __init__(self, spec: NormSpec, width: int) -> None:
        super().__init__()
        self.spec, self.width = spec, width
        self.weight = nn.Parameter(torch.ones(width)) if spec.affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if spec.affine and spec.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()
        if self.spec.kind == "layer":
            weight = None if self.weight is None else self.weight.float()
            bias = None if self.bias is None else self.bias.float()
            return F.layer_norm(x32, (self.width,), weight, bias, self.spec.eps).to(x.dtype)
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.spec.eps)
        if self.spec.unit_offset and self.weight is not None:
            return (x32 * (1.0 + self.weight.float())).to(x.dtype)
        x = x32.to(x.dtype)
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias
