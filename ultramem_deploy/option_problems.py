"""Options outside their ranges: a stage refuses them when it starts, a recipe tells them before its first stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from .errors import InputError

Problem = tuple[str, str]
"""An option as Python spells it; what was expected of it, and found."""


def refuse(problems: Iterable[Problem]) -> None:
    """Raise InputError for the first of them, with the option as the command line spells it."""
    for name, said in problems:
        raise InputError(f"--{name.replace('_', '-')}: {said}")


def unknown_choices(options: Any) -> Iterator[Problem]:
    """Fields of a dataclass whose metadata name the "choices", and that hold none of these."""
    for field in fields(options):
        choices, value = field.metadata.get("choices"), getattr(options, field.name)
        if choices and value not in choices:
            yield field.name, f"expected one of {', '.join(choices)}, found {value!r}"


def below(options: Any, least: float, said: str, *names: str) -> Iterator[Problem]:
    """Fields of a dataclass that are smaller than `least`, or no number."""
    for name in names:
        if not getattr(options, name) >= least:
            yield name, f"{said}, found {getattr(options, name)}"
