"""Choosing experts, or the rows of a memory that experts have become, from a router's logits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..ops.native_linear import linear
from ..spec import RoutingSpec

NEVER = -1e30
"""The score of what is not chosen: finite, so that it can be added to, and its softmax is exactly 0."""
LEAST = 2.0**-126
"""What a weight counts as where its logarithm ranks it: a softmax may underflow to 0, and 0 times -inf is no number."""


def router_logits(routing: RoutingSpec, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float32 [T, E] of x [T, d] and weight [E, d], rounded where transformers rounds."""
    if routing.scoring == "softmax":
        return linear(x, weight.to(x.dtype)).float()
    return F.linear(x.float(), weight.float())


def choose(routing: RoutingSpec, logits: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] -> experts int64 [T, k], best first, and their weights float32 [T, k]."""
    scores = logits.softmax(-1) if routing.scoring == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias.float()
    if routing.groups > 1:
        choice = choice.masked_fill(~_allowed(routing, choice), -torch.inf)
    chosen = choice.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(1, chosen)
    if routing.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return chosen, weights * routing.scale


def _allowed(routing: RoutingSpec, choice: torch.Tensor) -> torch.Tensor:
    """bool [T, E]: the experts of the groups whose two best sum to most."""
    grouped = choice.view(len(choice), routing.groups, -1)
    best = grouped.topk(2, dim=-1).values.sum(-1).topk(routing.top_groups, dim=-1).indices
    kept = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter(1, best, True)
    return kept[..., None].expand_as(grouped).flatten(1)
