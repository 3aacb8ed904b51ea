"""Bytes that a converter holds beside its result while it computes one chunk; the memory budget counts them."""

from __future__ import annotations

import math

from ..checkpoint.header import itemsize
from ..checkpoint.reader import GATHER_BYTES
from ..checkpoint.writer import chunk_elements

TILE = 1024
"""Rows that an expansion multiplies at a time, about: every product packs the weights anew, 5% of its time at 512."""
MOST_TILE = TILE * 3 // 2
"""And at most: a block's rows are cut into tiles of one size, so that none is a handful."""
SLOT_BYTES = 96
"""Bytes a virtual slot that mapping it and sorting the reads take: sigma, block, row, and their sorted copies."""


def gather_scratch(shape: tuple[int, ...], dtype: str, stored: str) -> int:
    """Of gathering the rows of a chunk of `shape`, stored as `stored`, into `dtype`."""
    elements = chunk_elements(shape, dtype)
    rows = elements // max(1, math.prod(shape[1:]))
    return SLOT_BYTES * rows + GATHER_BYTES + (0 if dtype == stored else elements * itemsize(stored))


def expand_scratch(shape: tuple[int, ...], dtype: str, value_width: int, stored: str) -> int:
    """Of expanding a chunk of `shape` from rows of `value_width` numbers stored as `stored`."""
    width = math.prod(shape[1:])
    rows = chunk_elements(shape, dtype) // max(1, width)
    # Rows as they are read and in float64; one core's product and its rounded copy.
    tile = min(MOST_TILE, rows) * (value_width * (itemsize(stored) + 8) + 2 * width * 8)
    return rows * SLOT_BYTES + GATHER_BYTES + tile


def projection_held(blocks: int, value_width: int, hidden: int) -> int:
    """Of W_o in float64, and once more while its axes are put in order; held as long as a layer is expanded."""
    return 2 * 8 * blocks * value_width * hidden


def key_scratch(shape: tuple[int, ...]) -> int:
    """Of normalising a chunk of float32 keys of `shape`: as stored, in float64, and its squares."""
    return chunk_elements(shape, "float32") * (4 + 8 + 8)


def experts_scratch(shape: tuple[int, ...], dtype: str) -> int:
    """Of putting experts [E, rows, columns] side by side: a chunk again, and one expert twice while it is joined."""
    return (chunk_elements(shape, dtype) + 2 * math.prod(shape[1:])) * itemsize(dtype)


QUANTIZE_BLOCK = 1 << 18
"""Numbers that quantising takes at a time: its dozen passes over them stay within a core's second-level cache."""


def quantize_scratch(elements: int, stored: str) -> int:
    """Of encoding a chunk of `elements` numbers stored as `stored`: its codes once more, while they are joined, and a
    block as stored and in five float32 arrays."""
    return elements + QUANTIZE_BLOCK * (itemsize(stored) + 5 * 4)
