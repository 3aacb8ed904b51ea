"""Comparing two artifacts that should compute the same: fails by default, shows the worst row, never a mean alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .runtime.opening import open_runner
from .runtime.tokenizer import Tokenizer, has_tokenizer
from .tally import Difference, Tally
from .text import load_corpus, token_windows

WINDOW = 256
DEFAULT_MAX_ABS = 1e-3
DEFAULT_KL = 1e-5


@dataclass(frozen=True)
class Verification(Difference):
    """The outcome of a comparison: what differs, the limits (largest logit error, mean KL), why it failed."""

    passed: bool
    max_abs: float
    kl: float
    reference_runtime: str
    candidate_runtime: str
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; numbers that are not finite become null."""
        return {key: _finite(value) for key, value in asdict(self).items()}


def compare(
    reference: Path,
    candidate: Path,
    *,
    text: Path | None = None,
    tokens: int = 512,
    max_abs: float = DEFAULT_MAX_ABS,
    kl: float = DEFAULT_KL,
    runtime: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verification:
    """Run both on the same tokens and compare.

    The reference runs in float32: a canonical checkpoint in PyTorch, a bundle by its function bodies, a source
    checkpoint in transformers. `runtime` chooses how the candidate runs (see `open_runner`). Tokens come from the
    held-out documents of `text`, or are random where neither side has a tokenizer. Raises InputError where the two
    cannot be compared.
    """
    if tokens < 2:
        raise InputError(f"--tokens: at least 2 are needed to predict one from another, found {tokens}")
    left = open_runner(reference, "ort-bodies" if (reference / "model.onnx").is_file() else None, dtype="float32")
    right = open_runner(candidate, runtime, dtype="float32")
    if left.vocab_size != right.vocab_size:
        raise InputError(
            f"verify: {reference.name} has {left.vocab_size} logits a token, {candidate.name} {right.vocab_size}: "
            "they are not the same model"
        )
    spans = [runner.spec.decoder.max_positions for runner in (left, right) if runner.spec]
    lengths = _window_lengths(tokens, min([WINDOW, *spans]))
    windows = _comparison_tokens(reference, candidate, text, lengths, left.vocab_size)
    tally = Tally()
    for index, window in enumerate(windows):
        tally.add(left.trace(window[None]), right.trace(window[None]), window)
        if progress:
            progress(index + 1, len(windows), "comparing")
    found = tally.result()
    passed = found.max_abs_logit_error <= max_abs and found.mean_kl <= kl
    return Verification(
        **vars(found),
        passed=passed,
        reason=None if passed else _reason(f"{candidate.name} differs from {reference.name}", found, max_abs, kl),
        max_abs=max_abs,
        kl=kl,
        reference_runtime=left.name,
        candidate_runtime=right.name,
    )


def _reason(what: str, found: Difference, max_abs: float, kl: float) -> str:
    worst = found.worst
    return (
        f"verify: {what}: max abs logit error {found.max_abs_logit_error:.3g} (limit {max_abs:.3g}), mean KL "
        f"{found.mean_kl:.3g} (limit {kl:.3g}); worst {worst.tensor} at token {worst.token}: {worst.reference:.6g} "
        f"became {worst.candidate:.6g}"
    )


def _window_lengths(tokens: int, window: int) -> list[int]:
    """Lengths of at most `window`, `tokens` in all; one fewer where the last window would predict nothing."""
    lengths = [min(window, tokens - start) for start in range(0, tokens, window)]
    return lengths[:-1] if len(lengths) > 1 and lengths[-1] < 2 else lengths


def _comparison_tokens(
    reference: Path, candidate: Path, text: Path | None, lengths: list[int], vocab: int
) -> list[np.ndarray]:
    """Token ids int64, one array a window."""
    owner = next((path for path in (candidate, reference) if path.is_dir() and has_tokenizer(path)), None)
    if owner is None:
        if text is not None:
            raise InputError("--text: neither model has a tokenizer.json to read it with")
        rng = np.random.default_rng(0)
        return [rng.integers(0, vocab, length) for length in lengths]
    flat = token_windows(Tokenizer(owner), load_corpus(text).held_out, sum(lengths), 1)[0]
    if flat.max() >= vocab:
        raise InputError(f"{owner.name}/tokenizer.json: gives token {flat.max()}, the model has {vocab}: not its own")
    return np.split(flat, np.cumsum(lengths)[:-1])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
