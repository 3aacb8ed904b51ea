"""What training minimises: the next token's loss, the divergence from a source model, layer-wise regression to it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.spec import ModelSpec


def next_token_loss(model: UltraMemModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token."""
    logits = model.head(_hidden(model, ids)[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def divergence(model: UltraMemModel, source: UltraMemModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean KL(source || model) of the next token, nats a token."""
    with torch.no_grad():
        wanted = F.log_softmax(source(ids).flatten(0, 1).float(), 1)
    found = F.log_softmax(model.head(_hidden(model, ids)).flatten(0, 1).float(), 1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def regression(model: UltraMemModel, source: UltraMemModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean over spans of |y - y'|² / |y - x|², x and y the source's activations around a span of blocks.

    A span holds memory layers and the skip paths between them; each starts from the source's x, so that none has to
    make up for another's error.
    """
    errors = []
    with torch.no_grad():
        x = source.embed(ids)
    context, at = model.context(ids), 0
    for start, stop in spans(model.spec, source.spec):
        with torch.no_grad():
            x = source.blocks(x, context, at, start)
            wanted = source.blocks(x, context, start, stop)
        found = model.blocks(x, context, start, stop)
        change = (wanted - x).float().square().sum()
        errors.append((found - wanted).float().square().sum() / change.clamp(min=torch.finfo(torch.float32).tiny))
        x, at = wanted, stop
    return torch.stack(errors).mean()


def spans(spec: ModelSpec, source: ModelSpec) -> list[tuple[int, int]]:
    """Ranges [start, stop) of blocks that hold memory layers of `spec`; paths of either model that overlap are one."""
    merged: list[tuple[int, int]] = []
    for layer in sorted((*spec.memory, *source.memory), key=lambda layer: layer.read_block):
        start, stop = layer.read_block, layer.write_block + 1
        if merged and start < merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged[-1][1])
            merged.pop()
        merged.append((start, stop))
    return merged


def _hidden(model: UltraMemModel, ids: torch.Tensor) -> torch.Tensor:
    """The last block's output [B, S, d]; what lies below everything that is trained runs without a graph."""
    blocks = len(model.model.layers)
    first = _first_trained(model)
    context = model.context(ids)
    with torch.set_grad_enabled(torch.is_grad_enabled() and first is None):
        x = model.blocks(model.embed(ids), context, 0, first or 0)
    return model.blocks(x, context, first or 0, blocks)


def _first_trained(model: UltraMemModel) -> int | None:
    """The block where gradients end; None where the dense weights learn too."""
    if any(p.requires_grad for p in model.model.parameters()):
        return None
    return min(layer.read_block for layer in model.spec.memory)
