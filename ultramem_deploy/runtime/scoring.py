"""Perplexity and decoding speed of any runner."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from .base import Runner
from .generation import Generation, greedy


def perplexity(runner: Runner, windows: np.ndarray, progress: Callable[[int, int, str], None] | None = None) -> float:
    """exp of the mean next-token loss (nats, float64 sums) over int64 windows [N, length], each a fresh sequence."""
    total = 0.0
    for index, window in enumerate(windows):
        logits = runner.logits(window[None])[0, :-1].astype(np.float64)
        top = logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        total += float((log_sum - logits[np.arange(len(logits)), window[1:]]).sum())
        if progress:
            progress(index + 1, len(windows), "perplexity")
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def decode_rates(runners: dict[str, Runner], prompt: list[int], new_tokens: int, rounds: int) -> dict[str, float]:
    """Median greedy tokens/s of each runner at batch 1, their runs interleaved so that drift meets all alike."""
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            record = Generation()
            for _ in greedy(runner, prompt, new_tokens, (), record):
                pass
            rates[name].append(record.tokens_per_second)
    return {name: statistics.median(values) for name, values in rates.items()}
