"""Rotary positions as Hugging Face spells them: `rope_parameters`, or the older `rope_theta` with `rope_scaling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.spec import RopeSpec

from .config_reader import ConfigReader, Key, checked_number

_DEFAULT_THETA = 10000.0
_POSITIVE = Key((), float)
_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_FIXED = {"partial_rotary_factor": 1.0}


def read_rope(reader: ConfigReader, max_positions: int) -> RopeSpec:
    """The rotary positions of a configuration; problems (yarn, contradictions, missing factors) go to the reader."""
    new, old = (_object(reader, key) for key in ("rope_parameters", "rope_scaling"))
    where = "rope_parameters" if new else "rope_scaling"
    if new and old and new != old:
        reader.problem("rope_scaling: contradicts rope_parameters; keep the one that the model was trained with")
    values = dict(new or old)
    kind = values.pop("rope_type", None) or values.get("type") or "default"
    values.pop("type", None)
    theta = _theta(reader, values, where)
    if not isinstance(kind, str) or kind not in _TYPES:
        reader.problem(f"{where}.rope_type: expected {', '.join(_TYPES)}, found {shown(kind)}")
        return RopeSpec(theta)
    return _scaled(reader, where, kind, theta, values, max_positions)


def _object(reader: ConfigReader, key: str) -> dict[str, Any]:
    value = reader.raw(key)
    if value is None or isinstance(value, dict):
        return value or {}
    reader.problem(f"{key}: expected an object or null, found {shown(value)}")
    return {}


def _theta(reader: ConfigReader, values: dict[str, Any], where: str) -> float:
    inner, outer = values.pop("rope_theta", None), reader.raw("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        reader.problem(f"rope_theta: {shown(outer)} contradicts {where}.rope_theta {shown(inner)}")
    value = inner if inner is not None else outer if outer is not None else _DEFAULT_THETA
    return _positive(reader, "rope_theta", value)


def _scaled(
    reader: ConfigReader, where: str, kind: str, theta: float, values: dict[str, Any], max_positions: int
) -> RopeSpec:
    numbers: dict[str, float] = {}
    for name in _TYPES[kind]:
        numbers[name] = _positive(reader, f"{where}.{name}", values.pop(name, None))
    original = values.pop("original_max_position_embeddings", None) if kind == "llama3" else None
    _no_more(reader, where, kind, values)
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", numbers["factor"])
    if numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        reader.problem(f"{where}.high_freq_factor: must exceed low_freq_factor {low}, found {high}")
    positions, expected = checked_number(max_positions if original is None else original, Key(()))
    if positions is None:
        reader.problem(f"{where}.original_max_position_embeddings: expected {expected}, found {shown(original)}")
    return RopeSpec(theta, "llama3", **numbers, original_max_positions=positions or 1)


def _no_more(reader: ConfigReader, where: str, kind: str, values: Mapping[str, Any]) -> None:
    for name, value in sorted(values.items()):
        if name in _FIXED and value in (None, _FIXED[name]):
            continue
        reader.problem(f"{shown(f'{where}.{name}')}: not supported with rope_type {kind} (value {shown(value, 40)})")


def _positive(reader: ConfigReader, where: str, value: Any) -> float:
    number, expected = checked_number(value, _POSITIVE)
    if number is None:
        reader.problem(f"{where}: expected {expected}, found {shown(value)}")
        return 1.0
    return float(number)
