"""Running a canonical checkpoint in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..model import KVCache, MemoryLayer, Retrieval, UltraMemModel, load
from ..planning import prefill_chunk
from ..spec import ModelSpec
from .base import LayerTrace, Trace


class TorchRunner:
    """`Runner` over a model, or what `model.load` makes of a directory; `dtype` and `tables` as there (float32 is the
    reference that verification compares with)."""

    name = "torch"

    def __init__(self, source: Path | UltraMemModel, dtype: str | None = None, tables: str | None = None) -> None:
        self.model = source if isinstance(source, UltraMemModel) else load(source, dtype=dtype, tables=tables)
        self.spec: ModelSpec = self.model.spec
        self.vocab_size = self.spec.decoder.vocab_size

    @torch.no_grad()
    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [B, S, V] of int64 [B, S], fed in chunks over the cache."""
        session = TorchSession(self.model)
        parts = [session.step(part, keep=0) for part in _chunks(self.spec, input_ids)]
        return np.concatenate(parts, axis=1)

    @torch.no_grad()
    def trace(self, input_ids: np.ndarray) -> Trace:
        """As `logits`, with each memory layer's indices, output and selection margins; one sequence at a time."""
        layers = self.model.memory_layers
        seen: list[list[LayerTrace]] = [[] for _ in layers]
        try:
            for layer, into in zip(layers, seen, strict=True):
                layer.observer = _observer(into, layer)
            logits = np.concatenate([self.logits(row[None]) for row in input_ids])
        finally:
            for layer in layers:
                layer.observer = None
        return Trace(logits, [_joined(parts) for parts in seen])

    def session(self) -> TorchSession:
        return TorchSession(self.model)


class TorchSession:
    """One batch of sequences and its cache."""

    def __init__(self, model: UltraMemModel) -> None:
        self.model, self.cache = model, KVCache(model.spec.decoder)

    def feed(self, input_ids: np.ndarray) -> np.ndarray:
        """Append int64 [B, S]; logits float32 [B, V] of the last position."""
        parts = [self.step(part, keep=1) for part in _chunks(self.model.spec, input_ids)]
        return parts[-1][:, -1]

    @torch.no_grad()
    def step(self, input_ids: np.ndarray, keep: int) -> np.ndarray:
        """Append int64 [B, S]; logits float32 of the last `keep` positions (0: all)."""
        ids = torch.from_numpy(np.ascontiguousarray(input_ids))
        logits: np.ndarray = self.model(ids, cache=self.cache, logits_to_keep=keep).float().numpy()
        return logits


def _chunks(spec: ModelSpec, input_ids: np.ndarray) -> list[np.ndarray]:
    step = max(1, prefill_chunk(spec) // max(1, len(input_ids)))
    return [input_ids[:, start : start + step] for start in range(0, input_ids.shape[1], step)]


def _observer(into: list[LayerTrace], layer: MemoryLayer) -> Callable[[Retrieval], None]:
    def observe(r: Retrieval) -> None:
        factors = layer.factors(r.row_scores.device)
        margin = selection_margin(r.row_scores, r.col_scores, *factors, layer.spec.top_m)
        into.append(LayerTrace(r.indices.numpy(), r.output.float().numpy(), margin.numpy()))

    return observe


def _joined(parts: list[LayerTrace]) -> LayerTrace:
    indices, outputs = (np.concatenate([getattr(p, f) for p in parts]) for f in ("indices", "output"))
    return LayerTrace(indices, outputs, np.concatenate([p.margin for p in parts if p.margin is not None]))


def selection_margin(
    row: torch.Tensor, col: torch.Tensor, u: torch.Tensor, v: torch.Tensor, core: torch.Tensor, k: int
) -> torch.Tensor:
    """float [T]: the smallest relative gap between the last kept and the first dropped score of a token.

    Over both sides of stage 1, the candidate grid of stage 2, and all heads; arguments as TuckerTopK's. A relative gap
    is (kept - dropped) / max(|kept|, |dropped|); an infinite one means that nothing is dropped.
    """
    a_row = torch.einsum("hr,thrn->thn", u, row)
    a_col = torch.einsum("hr,thrn->thn", v, col)
    i, j = (a.topk(min(k, a.shape[2]), dim=2).indices for a in (a_row, a_col))
    kept_row = row.gather(3, i[:, :, None].expand(-1, -1, row.shape[2], -1))
    kept_col = col.gather(3, j[:, :, None].expand(-1, -1, col.shape[2], -1))
    grid = torch.einsum("thra,hrs,thsb->thab", kept_row, core.sum(0), kept_col).flatten(2)
    gaps = torch.stack([_gap(scores, k) for scores in (a_row, a_col, grid)])
    return gaps.amin(dim=(0, 2))


def _gap(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Relative gap [T, H] after the k-th largest of scores [T, H, n]."""
    if scores.shape[2] <= k:
        return scores.new_full(scores.shape[:2], float("inf"))
    kept, dropped = scores.topk(k + 1, dim=2).values[..., -2:].unbind(2)
    scale = torch.maximum(kept.abs(), dropped.abs()).clamp(min=torch.finfo(scores.dtype).tiny)
    return (kept - dropped) / scale
