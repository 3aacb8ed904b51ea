"""What a model and each stage take, before any work is done: from headers and descriptions alone (no torch)."""

from .sizes import (
    PREFILL_BUDGET,
    gathered_bytes,
    parameter_counts,
    prefill_bytes,
    prefill_chunk,
    scored_bytes,
)

__all__ = [
    "PREFILL_BUDGET",
    "gathered_bytes",
    "parameter_counts",
    "prefill_bytes",
    "prefill_chunk",
    "scored_bytes",
]
