"""Greedy text generation over any runner. Sampling belongs to the serving runtimes (ORT GenAI has the samplers)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .base import Runner


@dataclass
class Generation:
    """Token ids as they come, and how long the prompt and the steps took (seconds)."""

    ids: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Decoding rate: the first token comes out of the prefill and is not counted; a step to a stop id is."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds > 0 else 0.0


def greedy(
    runner: Runner, prompt: list[int], max_new_tokens: int, stop: tuple[int, ...] = (), into: Generation | None = None
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids after `prompt`, ending before a stop id; timings go to `into`."""
    record = into if into is not None else Generation()
    session = runner.session()
    start = time.perf_counter()
    logits = session.feed(np.asarray([prompt], dtype=np.int64))
    record.prefill_seconds = time.perf_counter() - start
    for count in range(max_new_tokens):
        token = int(logits[0].argmax())
        if token in stop:
            return
        record.ids.append(token)
        yield token
        if count + 1 < max_new_tokens:
            start = time.perf_counter()
            logits = session.feed(np.asarray([[token]], dtype=np.int64))
            record.decode_seconds += time.perf_counter() - start
            record.decode_steps += 1
