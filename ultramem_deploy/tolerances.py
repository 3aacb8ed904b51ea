"""How far two artifacts may lie apart: hardly at all, unless one of them was quantised and the other was not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .option_problems import Problem
from .spec import ModelSpec


@dataclass(frozen=True)
class Limits:
    """Largest logit error, mean KL in nats a token, smallest share of equal indices; `why` they are not the usual."""

    max_abs: float = 1e-3
    kl: float = 1e-5
    # Rounded tables move a few selections; other slots altogether are a fault even where the outputs are small.
    index_agreement: float = 0.9
    why: str | None = None


# A selection near a tie that falls otherwise moves single logits by whole units: the mean is judged, not the worst.
_QUANTISED = {
    "int8": Limits(math.inf, 0.02, 0.9),
    "float8_e4m3": Limits(math.inf, 0.05, 0.85),
    "int4": Limits(math.inf, 0.2, 0.7),
}


# All of a decoder's weights in sixteen levels: other hidden states, so other slots.
_DENSE_INT4 = Limits(math.inf, 0.5, 0.5, "int4 dense weights on one side alone")
# MatMulNBits rounds activations to int8, PyTorch does not.
_ACTIVATIONS = Limits(math.inf, 0.02, 0.9, "dense weights meet int8 activations in one runtime alone")


def limit_problems(tokens: int, max_abs: float | None, kl: float | None) -> Iterator[Problem]:
    """What no comparison can be given: too few tokens, limits that nothing meets."""
    if tokens < 2:
        yield "tokens", f"at least 2 are needed to predict one from another, found {tokens}"
    for name, limit in (("max_abs", max_abs), ("kl", kl)):
        if limit is not None and not limit >= 0:
            yield name, f"expected 0 or more, found {limit}: nothing could pass"


def limits_for(reference: ModelSpec | None, candidate: ModelSpec | None, runtimes: tuple[str, str]) -> Limits:
    """The limits for two descriptions (None: a source model, whose numbers are floats) in two runtimes."""
    differing = _storages(reference) ^ _storages(candidate)
    if ("dense", "int4") in differing:
        return _DENSE_INT4
    coarse = [name for name in _QUANTISED if any(storage == name for _, storage in differing)]
    if not coarse:
        rounded = candidate is not None and candidate.decoder.dense != "float"
        return _ACTIVATIONS if rounded and ("torch" in runtimes and runtimes != ("torch", "torch")) else Limits()
    found = _QUANTISED[coarse[-1]]
    return Limits(found.max_abs, found.kl, found.index_agreement, f"{coarse[-1]} on one side alone")


def _storages(spec: ModelSpec | None) -> set[tuple[str, str]]:
    """What is quantised: names of tables and how they are stored."""
    if spec is None:
        return set()
    named = {name: table.storage for name, table in spec.tables.items()} | {"dense": spec.decoder.dense}
    return {(name, storage) for name, storage in named.items() if storage != "float"}
