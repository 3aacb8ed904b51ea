"""Token windows to learn from and to measure on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.text import Corpus, token_windows

HELD_OUT_WINDOWS, HELD_OUT_LENGTH = 8, 512


@dataclass(frozen=True)
class Windows:
    """int64 [N, length] to learn from, in an order drawn once; int64 [M, 512] (shorter for short models) held out."""

    train: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Tokenizer, length: int, longest: int, seed: int) -> Windows:
        """The corpus as windows of `length`, the held-out ones of at most `longest` tokens. InputError for too few."""
        train = torch.from_numpy(token_windows(tokenizer, corpus.train, length))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        return cls(train[order], _held_out(corpus, tokenizer, min(HELD_OUT_LENGTH, longest)))

    def batch(self, number: int, size: int) -> torch.Tensor:
        """Batch `number` of `size` windows, int64 [size, length]; after the last window comes the first again."""
        return self.train[torch.arange(number * size, (number + 1) * size) % len(self.train)]


def _held_out(corpus: Corpus, tokenizer: Tokenizer, length: int) -> torch.Tensor:
    with contextlib.suppress(InputError):
        return torch.from_numpy(token_windows(tokenizer, corpus.held_out, length, HELD_OUT_WINDOWS))
    return torch.from_numpy(token_windows(tokenizer, corpus.held_out, length))
