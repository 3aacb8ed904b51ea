"""Special token ids, from `config.json` and, where it says otherwise, `generation_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.spec import TokenSpec

from .config_reader import ConfigReader


def read_tokens(reader: ConfigReader, generation: Mapping[str, Any], vocab_size: int) -> TokenSpec:
    """Ids by the rule that generation follows: generation_config.json first. Ids outside the vocabulary are dropped."""
    ids = {}
    for name in ("bos", "eos", "pad"):
        key = f"{name}_token_id"
        own, chosen = reader.raw(key), generation.get(key)
        ids[name] = _in_vocabulary(reader, key, _as_ids(reader, key, own if chosen is None else chosen), vocab_size)
    for name in ("bos", "pad"):
        if len(ids[name]) > 1:
            reader.problem(f"{name}_token_id: expected one id, found {list(ids[name])}")
    return TokenSpec(bos=_first(ids["bos"]), eos=ids["eos"], pad=_first(ids["pad"]))


def _as_ids(reader: ConfigReader, key: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in values):
        reader.problem(f"{key}: expected a token id, a list of ids or null, found {shown(value)}")
        return ()
    return tuple(dict.fromkeys(values))


def _in_vocabulary(reader: ConfigReader, key: str, ids: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    kept = tuple(item for item in ids if 0 <= item < vocab_size)
    if kept != ids:
        outside = [item for item in ids if item not in kept]
        reader.warnings.append(f"{key}: {shown(outside)} outside the vocabulary of {vocab_size}; dropped")
    return kept


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None
