"""Pairs the tensors that a description asks for with those that a source holds, and says what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError

Shape = tuple[int, ...]
_SHOWN = 3


class TensorsDiffer(InputError):
    """The tensors are not those that the configuration describes: `count` of them do not fit."""

    def __init__(self, message: str, count: int) -> None:
        self.count = count
        super().__init__(message)


class NameMap:
    """A declarative key map: pairs of (canonical, source) name patterns; `{i}` is a block's number, `{e}` an expert's.

    A canonical name that no pattern matches keeps its name.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._rules = [(_pattern(ours), _template(theirs)) for ours, theirs in pairs]

    def source(self, canonical: str) -> str:
        """The source's name of a canonical tensor."""
        for pattern, replacement in self._rules:
            found = pattern.fullmatch(canonical)
            if found:
                return found.expand(replacement)
        return canonical


def _pattern(canonical: str) -> re.Pattern[str]:
    escaped = re.escape(canonical)
    return re.compile(re.sub(r"\\\{([ie])\\\}", r"(?P<\1>\\d+)", escaped))


def _template(source: str) -> str:
    return re.sub(r"\{([ie])\}", r"\\g<\1>", source)


def match_tensors(
    where: str, wanted: Mapping[str, Shape], held: Mapping[str, Shape], names: NameMap, ignorable: Sequence[str] = ()
) -> dict[str, str]:
    """Canonical name -> source name, for every tensor of `wanted`; shapes are compared.

    `ignorable` are regular expressions of source names that may be left over. Raises one TensorsDiffer that names what
    is missing, misshapen or unexpected (the first few of each, and how many).
    """
    pairs = {name: names.source(name) for name in wanted}
    missing = [f"{shown(theirs)} {list(wanted[ours])}" for ours, theirs in pairs.items() if theirs not in held]
    wrong = [
        f"{shown(theirs)} expected {list(wanted[ours])}, found {list(held[theirs])}"
        for ours, theirs in pairs.items()
        if theirs in held and held[theirs] != wanted[ours]
    ]
    left = sorted(set(held) - set(pairs.values()))
    unexpected = [f"{shown(name)} {list(held[name])}" for name in left if not _matches(name, ignorable)]
    kinds = (("missing", missing), ("wrong shape", wrong), ("unexpected", unexpected))
    problems = [f"{len(items)} {_tensors(items)} {kind}: {_few(items)}" for kind, items in kinds if items]
    if problems:
        message = f"{where}: does not hold the model that its configuration describes: {'; '.join(problems)}"
        raise TensorsDiffer(message, len(missing) + len(wrong) + len(unexpected))
    return pairs


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _tensors(items: list[str]) -> str:
    return "tensor" if len(items) == 1 else "tensors"


def _few(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
