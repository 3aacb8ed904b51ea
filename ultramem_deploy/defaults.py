"""Defaults that the command line shows and the functions use; imports nothing."""

from __future__ import annotations

DEFAULT_BUDGET = 2 << 30
"""Bytes of chunks in memory at a time."""
BATCHES = (1, 16, 64, 512)
"""Batch sizes that a fold is judged at."""
