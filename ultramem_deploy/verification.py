"""Comparing two artifacts that should compute the same: fails by default, shows the worst row, never a mean alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .option_problems import refuse
from .runtime.base import Runner, Trace
from .runtime.opening import home, open_runner
from .runtime.tokenizer import Tokenizer, has_tokenizer
from .tally import Difference, Tally, fallen_tie, first_tokens
from .text import load_corpus, read_text
from .tolerances import Limits, limit_problems, limits_for

WINDOW = 256
# No tokenizer in use needs more of them for a token, on average: of a large file only the beginning is encoded.
CHARACTERS = 32


@dataclass(frozen=True)
class Verification(Difference):
    """The outcome of a comparison: what differs, the limits (largest logit error, mean KL, smallest index agreement),
    why those are not the usual ones, why it failed."""

    passed: bool
    max_abs: float
    kl: float
    min_index_agreement: float
    tolerance: str | None
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
    max_abs: float | None = None,
    kl: float | None = None,
    runtime: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verification:
    """Run both on the same tokens and compare.

    The reference runs in float32: a canonical checkpoint in PyTorch, a bundle by its function bodies, a source
    checkpoint in transformers. `runtime` chooses how the candidate runs (see `open_runner`). Tokens are the first of
    `text` (default: held-out topics of the Python language reference), or random where neither side has a tokenizer.
    `max_abs` and `kl` are limits; None takes those of `tolerances.limits_for`.
    Raises InputError where the two cannot be compared.
    """
    refuse(limit_problems(tokens, max_abs, kl))
    bodies = "ort-bodies" if (reference / "model.onnx").is_file() else None
    # Too few tokens to pay for a copy of a table.
    left = open_runner(reference, bodies, dtype="float32", tables="mapped")
    right = open_runner(candidate, runtime, dtype="float32", tables="mapped")
    if left.vocab_size != right.vocab_size:
        raise InputError(
            f"verify: {reference.name} has {left.vocab_size} logits a token, {candidate.name} {right.vocab_size}: "
            "they are not the same model"
        )
    spans = [runner.spec.decoder.max_positions for runner in (left, right) if runner.spec]
    ids = _comparison_tokens(reference, candidate, text, tokens, left.vocab_size)
    windows = _windows(ids, min([WINDOW, *spans]))
    tally = Tally()
    for index, window in enumerate(windows):
        for pair in _traced(left, right, window):
            tally.add(*pair)
        if progress:
            progress(index + 1, len(windows), "comparing")
    found, limits = tally.result(), limits_for(left.spec, right.spec, (left.name, right.name))
    limits = replace(limits, max_abs=limits.max_abs if max_abs is None else max_abs, kl=limits.kl if kl is None else kl)
    reason = _reason(f"{candidate.name} differs from {reference.name}", found, limits)
    return Verification(
        **vars(found),
        passed=reason is None,
        reason=reason,
        max_abs=limits.max_abs,
        kl=limits.kl,
        min_index_agreement=limits.index_agreement,
        tolerance=limits.why,
        reference_runtime=left.name,
        candidate_runtime=right.name,
    )


def _traced(left: Runner, right: Runner, window: np.ndarray) -> Iterator[tuple[Trace, Trace, np.ndarray]]:
    """Traces of a window's pieces: a token whose tie fell differently is the last of its piece.

    The tokens after it would attend to it and differ for its sake; they are compared in a context of their own.
    """
    while len(window):
        reference, candidate = left.trace(window[None]), right.trace(window[None])
        end = fallen_tie(reference, candidate)
        length = len(window) if end is None else end + 1
        yield first_tokens(reference, length), first_tokens(candidate, length), window[:length]
        window = window[length:]


def _reason(what: str, found: Difference, limits: Limits) -> str | None:
    """Why the comparison failed, in one line, or None; a NaN fails every limit."""
    worst = found.worst_logit
    problems = []
    if not found.max_abs_logit_error <= limits.max_abs:
        problems.append(
            f"max abs logit error {found.max_abs_logit_error:.3g} (limit {limits.max_abs:.3g}), {worst.tensor} at "
            f"token {worst.token}: {worst.reference:.6g} became {worst.candidate:.6g}"
        )
    if not found.mean_kl <= limits.kl:
        problems.append(f"mean KL {found.mean_kl:.3g} nats a token (limit {limits.kl:.3g})")
    if not found.index_agreement >= limits.index_agreement:
        problems.append(
            f"memory layers chose the same slots in {found.index_agreement:.1%} (at least {limits.index_agreement:.0%})"
        )
    return f"verify: {what}: {'; '.join(problems)}" if problems else None


def _windows(ids: np.ndarray, length: int) -> list[np.ndarray]:
    """Pieces of at most `length`; one fewer where the last would predict nothing."""
    pieces = np.split(ids, range(length, len(ids), length))
    return pieces[:-1] if len(pieces) > 1 and len(pieces[-1]) < 2 else pieces


def _comparison_tokens(reference: Path, candidate: Path, text: Path | None, tokens: int, vocab: int) -> np.ndarray:
    """At most `tokens` ids, int64: fewer where the user's text holds fewer."""
    owners = (home(path) for path in (candidate, reference))
    owner = next((path for path in owners if path.is_dir() and has_tokenizer(path)), None)
    if owner is None:
        if text is not None:
            raise InputError("--text: neither model has a tokenizer.json to read it with")
        return np.random.default_rng(0).integers(0, vocab, tokens)
    content = "\n\n".join(load_corpus().held_out) if text is None else read_text(text)
    ids = np.asarray(Tokenizer(owner).encode(content[: CHARACTERS * tokens])[:tokens], dtype=np.int64)
    if len(ids) < 2:
        raise InputError(f"--text: {text}: holds {len(ids)} tokens; at least 2 are needed")
    if ids.max() >= vocab:
        raise InputError(f"{owner.name}/tokenizer.json: gives token {ids.max()}, the model has {vocab}: not its own")
    return ids


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
