"""What every verb's function does with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..units import parse_bytes

Budget = int | float | str
"""Bytes, or a size such as "2GiB"; bounds the chunks in memory, never changes a byte."""
Progress = Callable[[int, int, str], None]


def as_budget(value: Budget) -> int:
    """Bytes of a budget. Raises InputError for what is no size."""
    return parse_bytes(value)


def as_batches(value: int | Sequence[int]) -> tuple[int, ...]:
    """Batch sizes, given as one or several."""
    return (value,) if isinstance(value, int) else tuple(value)


def as_path(value: str | Path | None) -> Path | None:
    """A path, or None."""
    return None if value is None else Path(value)


def as_options(kind: Any, given: dict[str, Any]) -> Any:
    """The options dataclass `kind` with the fields given. Raises InputError for one it does not have."""
    check_known(kind, given)
    return kind(**given)


def check_known(kind: Any, given: dict[str, Any]) -> None:
    """Raise InputError for an option that `kind` does not have."""
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r}; expected some of {', '.join(names)}")
