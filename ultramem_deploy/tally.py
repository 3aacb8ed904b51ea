"""How far two runs of the same tokens lie apart, added up window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .runtime.base import LayerTrace, Trace

TIE_MARGIN = 1e-5
MAX_EXCLUDED = 0.01


@dataclass(frozen=True)
class Worst:
    """The entry of a tensor that differs most: of the logits (layer None), or of the output of memory layer `layer`."""

    layer: int | None
    token: int
    tensor: str
    reference: float
    candidate: float


@dataclass(frozen=True)
class Difference:
    """Errors and KL are over tokens away from selection ties (spec §5); `_all_tokens`, top-1 and perplexity over all.

    mean_kl is KL(reference || candidate) in nats a token; index_agreement the smallest over layers of the fraction of
    the reference's virtual indices that the candidate chose too (1 where no memory layers are compared).
    """

    max_abs_logit_error: float
    max_abs_logit_error_all_tokens: float
    mean_kl: float
    top1_agreement: float
    perplexity_reference: float
    perplexity_candidate: float
    index_agreement: float
    excluded_tokens: int
    tokens: int
    compared_memory_layers: int
    max_memory_error: float
    worst: Worst
    worst_logit: Worst


class TensorErrors:
    """The worst entry of every token of one tensor; a NaN on either side counts as an infinite error."""

    def __init__(self, layer: int | None) -> None:
        self.layer = layer
        self.tensor = "logits" if layer is None else f"memory.{layer}.output"
        self._rows: list[np.ndarray] = []

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Both float32 [T, n]."""
        difference = np.nan_to_num(np.abs(reference - candidate), nan=np.inf)
        column = difference.argmax(1)
        at = (np.arange(len(column)), column)
        self._rows.append(np.stack([difference[at], column, reference[at], candidate[at]], 1).astype(np.float64))

    def errors(self) -> np.ndarray:
        """float64 [T]."""
        return np.concatenate(self._rows)[:, 0]

    def worst(self, kept: np.ndarray) -> tuple[float, Worst]:
        """The largest error of the tokens `kept` (bool [T]) and where it is."""
        rows = np.concatenate(self._rows)
        token = int(np.where(kept, rows[:, 0], -1.0).argmax())
        error, column, reference, candidate = rows[token].tolist()
        return error, Worst(self.layer, token, f"{self.tensor}[{int(column)}]", reference, candidate)


class Tally:
    """Sums and extremes over windows of one sequence each."""

    def __init__(self) -> None:
        self._logits = TensorErrors(None)
        self._layers: list[TensorErrors] = []
        self._overlaps: list[list[np.ndarray]] = []
        self._margins: list[np.ndarray] = []
        self._kl: list[np.ndarray] = []
        self._same_top1: list[np.ndarray] = []
        self._nll: list[tuple[float, float, int]] = []

    def add(self, reference: Trace, candidate: Trace, ids: np.ndarray) -> None:
        """Traces of the sequence `ids`, int64 [S]."""
        left, right = reference.logits[0], candidate.logits[0]
        self._logits.add(left, right)
        left_log, right_log = _log_softmax(left), _log_softmax(right)
        self._kl.append((np.exp(left_log) * (left_log - right_log)).sum(1))
        self._same_top1.append(left.argmax(1) == right.argmax(1))
        following = (np.arange(len(ids) - 1), ids[1:])
        self._nll.append((-left_log[following].sum(), -right_log[following].sum(), len(ids) - 1))
        pairs = [(a, b) for a, b in zip(reference.layers, candidate.layers, strict=False)]
        self._add_layers([pair for pair in pairs if pair[0].output.shape == pair[1].output.shape], len(ids))

    def _add_layers(self, pairs: list[tuple[LayerTrace, LayerTrace]], tokens: int) -> None:
        if not self._layers:
            self._layers = [TensorErrors(index) for index in range(len(pairs))]
            self._overlaps = [[] for _ in pairs]
        smallest = np.full(tokens, np.inf)
        for errors, overlaps, (a, b) in zip(self._layers, self._overlaps, pairs, strict=True):
            errors.add(a.output, b.output)
            overlaps.append(_overlap(a.indices, b.indices))
            for margin in (a.margin, b.margin):
                smallest = smallest if margin is None else np.minimum(smallest, margin)
        self._margins.append(smallest)

    def result(self) -> Difference:
        """The figures over everything added so far."""
        kept = kept_tokens(np.concatenate(self._margins))
        errors = self._logits.errors()
        places = [self._logits.worst(kept), *(layer.worst(kept) for layer in self._layers)]
        left, right, predicted = np.asarray(self._nll).sum(0)
        overlaps = [float(np.concatenate(parts)[kept].mean()) for parts in self._overlaps]
        return Difference(
            max_abs_logit_error=places[0][0],
            max_abs_logit_error_all_tokens=float(errors.max()),
            mean_kl=float(np.concatenate(self._kl)[kept].mean()),
            top1_agreement=float(np.concatenate(self._same_top1).mean()),
            perplexity_reference=_exp(left / predicted),
            perplexity_candidate=_exp(right / predicted),
            index_agreement=min(overlaps, default=1.0),
            excluded_tokens=int((~kept).sum()),
            tokens=len(kept),
            compared_memory_layers=len(self._layers),
            max_memory_error=max((error for error, _ in places[1:]), default=0.0),
            worst=max(places, key=lambda place: place[0])[1],
            worst_logit=places[0][1],
        )


def fallen_tie(reference: Trace, candidate: Trace) -> int | None:
    """The first token of a sequence at which a tie (margin at most 1e-5) was decided differently, or None."""
    fallen = np.zeros(reference.logits.shape[1], dtype=bool)
    for a, b in zip(reference.layers, candidate.layers, strict=False):
        if a.indices.shape == b.indices.shape:
            margins = [m for m in (a.margin, b.margin) if m is not None]
            tied = np.min(margins, axis=0) <= TIE_MARGIN if margins else np.zeros_like(fallen)
            fallen |= tied & (np.sort(a.indices, 1) != np.sort(b.indices, 1)).any(1)
    return int(fallen.argmax()) if fallen.any() else None


def first_tokens(trace: Trace, length: int) -> Trace:
    """The trace of the first `length` tokens of one sequence."""
    layers = [
        LayerTrace(x.indices[:length], x.output[:length], None if x.margin is None else x.margin[:length])
        for x in trace.layers
    ]
    return Trace(trace.logits[:, :length], layers)


def kept_tokens(margins: np.ndarray) -> np.ndarray:
    """bool [T]: tokens to compare, by smallest selection margin: not the closest ties below 1e-5, at most 1% of T."""
    allowed = int(MAX_EXCLUDED * len(margins))
    closest = np.argsort(margins, kind="stable")[:allowed]
    kept = np.ones(len(margins), dtype=bool)
    kept[closest[margins[closest] <= TIE_MARGIN]] = False
    return kept


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Fraction of the row's indices in `a` that are in `b`'s row too, [T]; heads may take the same slot twice."""
    return np.asarray([np.isin(x, y).mean() for x, y in zip(a, b, strict=True)])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
