"""Rotary positions as Hugging Face spells them: `rope_parameters`, or the older `rope_theta` with `rope_scaling`."""

from __future__ import annotations

import math
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
    "yarn": ("factor",),
}
_FIXED = {"partial_rotary_factor": 1.0}


def read_rope(reader: ConfigReader, max_positions: int) -> RopeSpec:
    """The rotary positions of a configuration; problems (unknown types, contradictions) go to the reader."""
    new, old = (_object(reader, key) for key in ("rope_parameters", "rope_scaling"))
    where = "rope_parameters" if new else "rope_scaling"
    if new and old and new != old:
        reader.problem("rope_scaling: contradicts rope_parameters; keep the one that the model was trained with")
    return rope_of(reader, where, dict(new or old), max_positions, reader.raw("rope_theta"))


def rope_of(
    reader: ConfigReader, where: str, values: dict[str, Any], max_positions: int, theta_beside: Any = None
) -> RopeSpec:
    """The rotary positions that the object `where` with `values` describes; `theta_beside` is a theta outside it."""
    kind = values.pop("rope_type", None) or values.get("type") or "default"
    values.pop("type", None)
    theta = _theta(reader, values, where, theta_beside)
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


def _theta(reader: ConfigReader, values: dict[str, Any], where: str, outer: Any) -> float:
    inner = values.pop("rope_theta", None)
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
    original = values.pop("original_max_position_embeddings", None) if kind in ("llama3", "yarn") else None
    ramp = _yarn_ramp(reader, where, values, numbers["factor"]) if kind == "yarn" else {}
    _no_more(reader, where, kind, values)
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", numbers["factor"])
    positions, expected = checked_number(max_positions if original is None else original, Key(()))
    if positions is None:
        reader.problem(f"{where}.original_max_position_embeddings: expected {expected}, found {shown(original)}")
    if kind == "yarn":
        return RopeSpec(theta, "yarn", numbers["factor"], original_max_positions=positions or 1, **ramp)
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    if low >= high:
        reader.problem(f"{where}.high_freq_factor: must exceed low_freq_factor {low}, found {high}")
    return RopeSpec(theta, "llama3", numbers["factor"], low, high, positions or 1)


def mscale(factor: float, weight: float = 1.0) -> float:
    """By how much YaRN strengthens attention at a context `factor` times longer (arXiv 2309.00071, 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_ramp(reader: ConfigReader, where: str, values: dict[str, Any], factor: float) -> dict[str, Any]:
    """The fields of RopeSpec that only YaRN has; keys that are left out or null have transformers' defaults."""
    fast, slow = values.pop("beta_fast", None) or 32.0, values.pop("beta_slow", None) or 1.0
    given, one, all_dims = (values.pop(name, None) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is None:
        both = [_positive(reader, f"{where}.mscale", value) for value in (one, all_dims) if value]
        given = mscale(factor, both[0]) / mscale(factor, both[1]) if len(both) == 2 else mscale(factor)
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool):
        reader.problem(f"{where}.truncate: expected true or false, found {shown(truncate)}")
    return {
        "beta_fast": _positive(reader, f"{where}.beta_fast", fast),
        "beta_slow": _positive(reader, f"{where}.beta_slow", slow),
        "attention_factor": _positive(reader, f"{where}.attention_factor", given),
        "truncate": truncate is True,
    }


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
