"""The gated FFN, and mixtures of such FFNs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..layout import SELECTION_BIAS
from ..spec import DecoderSpec, ExpertsSpec
from .linear import Linear
from .routing import choose, router_logits

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), `width` neurons wide."""

    def __init__(self, decoder: DecoderSpec, width: int) -> None:
        super().__init__()
        d, bias = decoder.hidden_size, decoder.mlp_bias
        self.gate_proj = Linear(d, width, bias=bias)
        self.up_proj = Linear(d, width, bias=bias)
        self.down_proj = Linear(width, d, bias=bias)
        self.activation = ACTIVATIONS[decoder.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Which experts a token takes, and their weights."""

    def __init__(self, hidden_size: int, experts: ExpertsSpec) -> None:
        super().__init__()
        self.routing = experts.routing
        self.weight = nn.Parameter(torch.zeros(experts.count, hidden_size))
        bias = nn.Parameter(torch.zeros(experts.count)) if experts.routing.selection_bias else None
        self.register_parameter(SELECTION_BIAS, bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, d] -> experts int64 [T, k], best first, and their weights float32 [T, k]."""
        logits = router_logits(self.routing, x, self.weight)
        return choose(self.routing, logits, getattr(self, SELECTION_BIAS))


class Experts(nn.Module):
    """A mixture of experts and the FFN that they share, or one of both."""

    def __init__(self, decoder: DecoderSpec, experts: ExpertsSpec, routed: bool) -> None:
        super().__init__()
        self.spec, self.routed = experts, routed
        if routed:
            self.gate = Router(decoder.hidden_size, experts)
            self.experts = nn.ModuleList(GatedMLP(decoder, experts.width) for _ in range(experts.count))
        if experts.shared_width:
            self.shared_expert = GatedMLP(decoder, experts.shared_width)
        if experts.shared_gate:
            self.shared_expert_gate = Linear(decoder.hidden_size, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., d] -> [..., d]."""
        flat = x.flatten(0, -2)
        if not self.routed:
            return self._shared(flat).view_as(x)
        out = self.routed_output(flat)
        return (out + self._shared(flat) if self.spec.shared_width else out).view_as(x)

    def _shared(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.shared_expert(x)
        return self.shared_expert_gate(x).sigmoid() * out if self.spec.shared_gate else out

    def routed_output(self, x: torch.Tensor) -> torch.Tensor:
        """What the chosen experts add together, [T, d] of x [T, d]; what they share is left out."""
        chosen, weights = self.gate(x)
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            part = self.experts[expert](x[tokens]) * weights[tokens, place, None].to(x.dtype)
            out.index_add_(0, tokens, part)
        return out


def feed_forward(decoder: DecoderSpec, block: int) -> nn.Module | None:
    """What a block has after its attention, None where it has nothing."""
    if decoder.experts and decoder.has_experts(block):
        return Experts(decoder, decoder.experts, block in decoder.experts.layers)
    width = decoder.ffn_width(block)
    return GatedMLP(decoder, width) if width else None
