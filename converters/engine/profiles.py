"""Optimisation profiles: the sizes an engine takes, one profile for prompts and one for decoding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...planning import prefill_chunk
from ...spec import ModelSpec

DEFAULT_SHAPES = "1x1,1x512,4x2048"
_SHAPE = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class Range:
    """The smallest, the usual and the largest size."""

    min: int
    opt: int
    max: int

    def __add__(self, other: Range) -> Range:
        return Range(self.min + other.min, self.opt + other.opt, self.max + other.max)


@dataclass(frozen=True)
class Profile:
    """Sizes of the symbolic dimensions that the exporter declares."""

    name: str
    batch: Range
    tokens: Range
    past: Range

    def ranges(self, shape: Sequence[int | str]) -> list[Range]:
        """A range an axis of an input's shape; fixed sizes are ranges of one."""
        symbols = {
            "batch_size": self.batch,
            "sequence_length": self.tokens,
            "past_sequence_length": self.past,
            "total_sequence_length": self.past + self.tokens,
        }
        return [symbols[size] if isinstance(size, str) else Range(size, size, size) for size in shape]


def parse_shapes(text: str | None, positions: int) -> tuple[Range, Range]:
    """Batch and context (prompt and continuation together, tokens) from "MIN,OPT,MAX", each "BATCHxTOKENS" or "BATCH".

    A batch alone takes the default's context; nothing exceeds `positions`. Raises InputError for anything else.
    """
    parts = [_SHAPE.fullmatch(part.strip()) for part in (text or DEFAULT_SHAPES).split(",")]
    if len(parts) != 3 or not all(parts):
        raise InputError(f"--shapes: expected MIN,OPT,MAX, each BATCHxTOKENS such as {DEFAULT_SHAPES}, found {text!r}")
    usual = [part.partition("x")[2] for part in DEFAULT_SHAPES.split(",")]
    batch = [int(part[1]) for part in parts if part]
    tokens = [int(part[2] or default) for part, default in zip(parts, usual, strict=True) if part]
    if text is None or not any(part[2] for part in parts if part):
        tokens = [min(count, positions) for count in tokens]
    for name, sizes in (("batch", batch), ("tokens", tokens)):
        if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise InputError(f"--shapes: {name} must be positive and rise from MIN to MAX, found {sizes} in {text!r}")
    if tokens[2] > positions:
        raise InputError(f"--shapes: {tokens[2]} tokens, the model has {positions} positions")
    return Range(*batch), Range(*tokens)


def make_profiles(spec: ModelSpec, batch: Range, context: Range) -> tuple[Profile, Profile]:
    """Prefill: a piece of a prompt over what the cache holds. Decode: one token a sequence.

    A piece is bounded as in the other runtimes, so that function bodies never hold the rows of a whole long prompt.
    """
    piece = max(context.min, min(context.max, prefill_chunk(spec) // batch.max))
    tokens = Range(context.min, min(context.opt, piece), piece)
    past = Range(0, max(0, context.opt - 1), max(0, context.max - 1))
    return (
        Profile("prefill", batch, tokens, Range(0, 0, past.max)),
        Profile("decode", batch, Range(1, 1, 1), past),
    )
