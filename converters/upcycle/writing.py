"""What every method of `upcycle` is asked about writing its output, and hands on to `Stage`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

Progress = Callable[[int, int, str], None]


class Writing(TypedDict, total=False):
    """Arguments of `Stage`, with its defaults; nothing of it changes a byte."""

    overwrite: bool
    copy: bool
    jobs: int | None
    memory_budget: int | None
    progress: Progress | None
