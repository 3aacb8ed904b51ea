"""What `neurons` measures before any training: errors a block, perplexity and KL from the source, baselines, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ultramem_deploy.checkpoint.header import itemsize
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.model.ffn import GatedMLP

from .baselines import Choice, baselines, selective
from .calibration import BlockStatistics, ffns, neuron_values
from .selection import BlockPlan, keep, relative_error

_BLOCK_TOKENS = 512  # held-out FFN inputs that a block's errors are taken over


@dataclass
class Drift:
    """Sums over held-out tokens: next-token loss, and KL from the source's predictions, in nats."""

    loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0

    def add(self, source: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """`source` and `logits` float32 [S, V] of the sequence `ids` [S]."""
        ours, theirs = F.log_softmax(logits[:-1], 1), F.log_softmax(source[:-1], 1)
        self.loss += float(F.nll_loss(ours, ids[1:], reduction="sum"))
        self.kl += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
        self.tokens += len(ids) - 1

    def result(self) -> dict[str, float]:
        mean = self.loss / self.tokens
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "kl": self.kl / self.tokens}


@torch.no_grad()
def measure(
    dense: UltraMemModel,
    upcycled: UltraMemModel,
    plans: list[BlockPlan],
    statistics: list[BlockStatistics],
    windows: np.ndarray,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """The receipt's measurements over held-out int64 windows [count, length]; both models float32."""
    models = baselines(dense, plans, statistics)
    drifts = {name: Drift() for name in ("source", "upcycled", *models)}
    inputs = _Inputs(dense)
    for number, window in enumerate(windows):
        ids = torch.from_numpy(window)
        with inputs:
            source = dense(ids[None])[0]
        drifts["source"].add(source, source, ids)
        drifts["upcycled"].add(source, upcycled(ids[None])[0], ids)
        for name, choices in models.items():
            drifts[name].add(source, _selected(dense, choices, ids), ids)
        if progress:
            progress(number + 1, len(windows), "held-out text")
    found = {name: drift.result() for name, drift in drifts.items()}
    source_perplexity = found["source"]["perplexity"]
    for result in found.values():
        result["perplexity_ratio"] = result["perplexity"] / source_perplexity
    return {
        "perplexity_source": source_perplexity,
        "perplexity": found["upcycled"]["perplexity"],
        "perplexity_ratio": found["upcycled"]["perplexity_ratio"],
        "kl": found["upcycled"]["kl"],
        "baselines": {name: found[name] for name in models},
        "blocks": [_block(plan, dense, upcycled, inputs.of(plan.block)) for plan in plans],
    }


def _selected(dense: UltraMemModel, choices: list[Choice | None], ids: torch.Tensor) -> torch.Tensor:
    with selective(dense, choices):
        logits: torch.Tensor = dense(ids[None])[0]
        return logits


class _Inputs:
    """Context in which the dense model's FFN inputs are kept, a few of every window."""

    def __init__(self, model: UltraMemModel) -> None:
        self._model = model
        self._kept: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for mlp, kept in zip(ffns(self._model), self._kept, strict=True):
            self._hooks.append(mlp.register_forward_pre_hook(self._collector(kept)))

    def __exit__(self, *error: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def of(self, block: int) -> torch.Tensor:
        """[S, d]"""
        return torch.cat(self._kept[block])

    def _collector(self, kept: list[torch.Tensor]) -> Callable[..., None]:
        def collect(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
            room = _BLOCK_TOKENS - sum(map(len, kept))
            if room > 0:
                kept.append(arguments[0][0, -room:].clone())

        return collect


def _block(plan: BlockPlan, dense: UltraMemModel, upcycled: UltraMemModel, x: torch.Tensor) -> dict[str, Any]:
    """A block's numbers; recall is the share of the slots that matter most, as many as are kept, that are retrieved."""
    neurons = dense.spec.decoder.intermediate_size
    facts: dict[str, Any] = {
        "block": plan.block,
        "shared": len(plan.shared),
        "slots": len(plan.slots),
        "top_m": plan.top_m,
        "kept_values": plan.kept,
        "rank": plan.rank,
        "active_fraction": (len(plan.shared) + plan.kept) / neurons,
    }
    if not plan.top_m:
        return facts | {"relative_error": 0.0, "recall": 1.0}
    mlp = ffns(dense)[plan.block]
    index = next(i for i, layer in enumerate(upcycled.spec.memory) if layer.read_block == plan.block)
    memory, table = upcycled.memory_layers[index], upcycled.tables[f"block{plan.block}"]
    found = memory(x, table)
    rest = upcycled.model.layers[plan.block].mlp
    if isinstance(rest, GatedMLP):
        found = found + rest(x)
    _, indices = memory.retrieve(x)[-2:]
    return facts | {
        "relative_error": relative_error(found, mlp(x)),
        "recall": _recall(mlp, plan, memory.addresses(indices), x),
    }


def _recall(mlp: GatedMLP, plan: BlockPlan, addresses: torch.Tensor, x: torch.Tensor) -> float:
    _, inner = neuron_values(mlp, x)
    importance = (inner.abs() * mlp.down_proj.weight.float().norm(dim=0))[:, plan.slots]
    wanted = keep(importance, plan.kept)
    found = torch.zeros_like(wanted).scatter_(1, addresses, 1.0)
    return float((wanted * found).sum() / wanted.sum())


def costs(plans: list[BlockPlan], neurons: int, hidden: int, dtype: str) -> dict[str, Any]:
    """Neurons and bytes a token: of the FFNs as they were, and of what reads in their place (keys, gates, values)."""
    row = hidden * itemsize(dtype)
    active = [len(p.shared) + p.kept for p in plans]
    read = [3 * len(p.shared) + len(p.slots) + p.top_m + p.kept for p in plans]
    return {
        "active_fraction": sum(active) / (neurons * len(plans)),
        "ffn_bytes_a_token": sum(read) * row,
        "ffn_bytes_a_token_source": 3 * neurons * len(plans) * row,
        "ffn_bytes_fraction": sum(read) / (3 * neurons * len(plans)),
    }
