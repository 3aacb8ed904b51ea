"""What every way of running a model offers: logits, a trace for comparison, and a session that keeps its cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..spec import ModelSpec


@dataclass(frozen=True)
class LayerTrace:
    """What one memory layer did for T tokens.

    indices: int64 [T, K] virtual indices; output: float32 [T, d]; margin: float32 [T], the smallest relative
    selection margin of the token (None where the runtime does not show its scores).
    """

    indices: np.ndarray
    output: np.ndarray
    margin: np.ndarray | None = None


@dataclass(frozen=True)
class Trace:
    """Logits float32 [B, S, V], and one entry a memory layer (T = B*S)."""

    logits: np.ndarray
    layers: list[LayerTrace] = field(default_factory=list)


class Session(Protocol):
    """One batch of sequences with its key-value cache."""

    def feed(self, input_ids: np.ndarray) -> np.ndarray:
        """Append tokens int64 [B, S]; returns the last position's logits, float32 [B, V]."""
        ...


class Runner(Protocol):
    """A loaded model."""

    @property
    def name(self) -> str:
        """The runtime's name: torch, ort, ort-bodies or transformers."""
        ...

    @property
    def spec(self) -> ModelSpec | None:
        """The model's description; None for a source checkpoint."""
        ...

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        ...

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Logits float32 [B, S, V] of fresh sequences int64 [B, S]; long ones run in chunks over the cache."""
        ...

    def trace(self, input_ids: np.ndarray) -> Trace:
        """As `logits`, with every memory layer's choice and output."""
        ...

    def session(self) -> Session:
        """A new session with an empty cache."""
        ...
