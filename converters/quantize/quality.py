"""Perplexity of a model before and after quantising, on real text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import InputError
from ultramem_deploy.model.loading import load_checkpoint
from ultramem_deploy.runtime.scoring import perplexity
from ultramem_deploy.runtime.tokenizer import Tokenizer, has_tokenizer
from ultramem_deploy.runtime.torch_runner import TorchRunner
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.text import load_corpus, read_text

WINDOWS, LENGTH = 8, 512
CHARACTERS = 32
"""No tokenizer in use needs more of them for a token, on average: of a large file only the beginning is encoded."""
NO_TOKENIZER = "the model has no tokenizer.json"

Side = tuple[ModelSpec, Checkpoint]


@dataclass(frozen=True)
class Sample:
    """Token windows int64 [n, length] of the text called `name`."""

    name: str
    windows: np.ndarray

    @property
    def identity(self) -> dict[str, str]:
        """What tells one sample from another: the name, and a hash of the tokens."""
        return {"name": self.name, "sha256": hashlib.sha256(self.windows.tobytes()).hexdigest()}


def sample_text(src: Path, text: Path | None, spec: ModelSpec) -> Sample | None:
    """At most 8 windows of 512 tokens: the first of `text`, else of held-out topics of the Python language reference.

    None where nothing was asked for and the model has no tokenizer. Raises InputError for a text that cannot be used.
    """
    if text is None and not has_tokenizer(src):
        return None
    name, content = _default_text() if text is None else (text.name, read_text(text))
    ids = Tokenizer(src).encode(content[: CHARACTERS * WINDOWS * LENGTH])
    length = min(LENGTH, spec.decoder.max_positions, len(ids))
    if length < 2:
        raise InputError(f"--text: {text}: holds {len(ids)} tokens; at least 2 are needed")
    count = min(WINDOWS, len(ids) // length)
    return Sample(name, np.asarray(ids[: count * length], dtype=np.int64).reshape(count, length))


def _default_text() -> tuple[str, str]:
    corpus = load_corpus()
    return corpus.name, "\n\n".join(corpus.held_out)


def perplexities(
    before: Side, after: Side, sample: Sample | None, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """text, tokens, perplexity_before and perplexity_after, in PyTorch and the stored dtypes; null without a sample."""
    if sample is None:
        return {"text": NO_TOKENIZER, "tokens": 0, "perplexity_before": None, "perplexity_after": None}
    values = [perplexity(TorchRunner(load_checkpoint(*side)), sample.windows, progress) for side in (before, after)]
    return {
        "text": sample.name,
        "tokens": int(sample.windows.size),
        "perplexity_before": values[0],
        "perplexity_after": values[1],
    }
