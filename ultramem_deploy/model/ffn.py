"""The gated FFN, and mixtures of such FFNs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..spec import DecoderSpec, ExpertsSpec

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
        self.gate_proj = nn.Linear(d, width, bias=bias)
        self.up_proj = nn.Linear(d, width, bias=bias)
        self.down_proj = nn.Linear(width, d, bias=bias)
        self.activation = ACTIVATIONS[decoder.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Which experts a token takes, and their weights."""

    def __init__(self, hidden_size: int, experts: ExpertsSpec) -> None:
        super().__init__()
        self.spec = experts
        self.weight = nn.Parameter(torch.zeros(experts.count, hidden_size))
        if experts.selection_bias:
            self.e_score_correction_bias = nn.Parameter(torch.zeros(experts.count))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, d] -> experts int64 [T, k], best first, and their weights float32 [T, k]."""
        e = self.spec
        scores = self._scores(x)
        choice = scores + self.e_score_correction_bias.float() if e.selection_bias else scores
        if e.groups > 1:
            choice = choice.masked_fill(~self._allowed(choice), -torch.inf)
        chosen = choice.topk(e.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if e.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * e.scale

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        if self.spec.scoring == "softmax":
            return F.linear(x, self.weight).float().softmax(-1)
        return F.linear(x.float(), self.weight.float()).sigmoid()

    def _allowed(self, choice: torch.Tensor) -> torch.Tensor:
        """bool [T, experts]: those of the groups whose two best experts sum to most (DeepSeek-V3, 2.1.2)."""
        grouped = choice.view(len(choice), self.spec.groups, -1)
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.spec.top_groups, dim=-1).indices
        kept = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter(1, best, True)
        return kept[..., None].expand_as(grouped).flatten(1)


class Experts(nn.Module):
    """A mixture of experts, with a shared FFN beside it where the description has one."""

    def __init__(self, decoder: DecoderSpec, experts: ExpertsSpec) -> None:
        super().__init__()
        self.spec = experts
        self.gate = Router(decoder.hidden_size, experts)
        self.experts = nn.ModuleList(GatedMLP(decoder, experts.width) for _ in range(experts.count))
        if experts.shared_width:
            self.shared_expert = GatedMLP(decoder, experts.shared_width)
        if experts.shared_gate:
            self.shared_expert_gate = nn.Linear(decoder.hidden_size, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., d] -> [..., d]."""
        flat = x.flatten(0, -2)
        out = self._routed(flat)
        if self.spec.shared_width:
            shared = self.shared_expert(flat)
            if self.spec.shared_gate:
                shared = self.shared_expert_gate(flat).sigmoid() * shared
            out = out + shared
        return out.view_as(x)

    def _routed(self, x: torch.Tensor) -> torch.Tensor:
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
        return Experts(decoder, decoder.experts)
    width = decoder.ffn_width(block)
    return GatedMLP(decoder, width) if width else None
