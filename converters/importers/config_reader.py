"""Reads a foreign configuration key by key: every key is used, known to be harmless, or reported."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import ConfigError

REQUIRED: Any = object()
MAX_INTEGER = 2**31 - 1


@dataclass(frozen=True)
class Key:
    """Where one source key goes: the `fields` that take its value, its type (int, float or bool), its default.

    `default` REQUIRED means that the key must be there. A default of None allows null: "not set" or "derived".
    """

    fields: tuple[str, ...]
    kind: type = int
    default: Any = REQUIRED
    maximum: int = MAX_INTEGER


class ConfigReader:
    """One pass over a configuration; problems are collected, and `finish` raises them all as one ConfigError.

    `failed` holds the keys for which `number` had to return a placeholder: what follows from those is meaningless.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = config, where
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.failed: set[str] = set()
        self._seen: set[str] = set()

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands; counts the key as understood."""
        self._seen.add(key)
        return self.config.get(key, default)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def number(self, key: str, spec: Key) -> Any:
        """A value of the kind that `spec` asks for, or a placeholder after a problem was noted."""
        value = self.raw(key, spec.default)
        if value is None and spec.default is None:
            return None
        converted, expected = checked_number(value, spec)
        if converted is not None:
            return converted
        self.failed.add(key)
        self.problem(f"{key}: missing" if value is REQUIRED else f"{key}: expected {expected}, found {shown(value)}")
        return spec.kind(1)

    def fields(self, keys: Mapping[str, Key]) -> dict[str, Any]:
        """Read a whole declarative map: field name -> value."""
        values: dict[str, Any] = {}
        for key, spec in keys.items():
            value = self.number(key, spec)
            values |= dict.fromkeys(spec.fields, value)
        return values

    def fixed(self, allowed: Mapping[str, Collection[Any]]) -> None:
        """Keys that change the mathematics and are supported with these values alone, where they are present."""
        for key, values in allowed.items():
            if key not in self.config:
                continue
            found = self.raw(key)
            if not any(_same(found, value) for value in values):
                only = " or ".join(shown(value) for value in values)
                self.problem(f"{key}: only {only} is supported, found {shown(found)}")

    def finish(self, ignored: Iterable[str], more: Iterable[str] = ()) -> None:
        """Raise ConfigError if there were problems, among them keys that nobody read and `ignored` does not list."""
        ignored = set(ignored)
        unknown = sorted(set(self.config) - self._seen - ignored)
        known = [key for key in (*self._seen, *ignored) if key not in self.config]
        self.problems += [_unknown(key, self.config[key], known) for key in unknown]
        self.problems += more
        if self.problems:
            raise ConfigError(self.where, self.problems)


def _unknown(key: str, value: Any, known: Iterable[str]) -> str:
    near = get_close_matches(key[:60], sorted(known), 1, 0.8)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{shown(key)}: unknown key (value {shown(value, 40)}){hint}"


def checked_number(value: Any, spec: Key) -> tuple[Any, str]:
    """`value` converted as `spec` asks, or None; and in words what was expected. Numbers must be positive."""
    if spec.kind is bool:
        return (value if isinstance(value, bool) else None), "true or false"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if spec.kind is int:
        good = isinstance(value, int) and is_number and 0 < value <= spec.maximum
        return (value if good else None), f"a whole number from 1 to {spec.maximum}"
    good = is_number and 0 < value <= 1e30 and math.isfinite(value)
    return (float(value) if good else None), "a positive number"


def _same(found: Any, value: Any) -> bool:
    # True == 1 in Python, yet a flag and a count are different things in a configuration.
    return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)
