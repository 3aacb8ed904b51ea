"""Casts between float dtypes that round once, to nearest even, and refuse to turn a finite value into infinity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import itemsize, numpy_dtype
from ultramem_deploy.errors import InputError

_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_BLOCK = 1 << 15  # numbers cast at a time: every intermediate stays in a core's cache
_SAFE = 3.3e38  # every float32 up to here stays finite in bfloat16
_HALF, _TIE = np.uint32(16), np.uint32(1 << 31)  # lower halves of float32 that lie midway between two bfloat16


def check_cast(where: str, source: str, target: str) -> None:
    """InputError unless dtype `source` may be cast to `target`: the same, or both floats."""
    numpy_dtype(target)
    if source != target and not (source in _FLOATS and target in _FLOATS):
        raise InputError(
            f"{where}: {source} is not cast to {target}: only floats are cast, to floats ({', '.join(_FLOATS)})"
        )


def cast_scratch(elements: int, source: str, target: str) -> int:
    """Bytes that casting `elements` numbers of dtype `source` holds beside the result: the numbers as they were."""
    return 0 if source == target else elements * itemsize(source)


def cast(where: str, array: np.ndarray[Any, Any], target: str) -> np.ndarray[Any, Any]:
    """`array` (any shape) in dtype `target`; InputError naming `where` when a finite value does not fit."""
    dtype = numpy_dtype(target)
    if array.dtype == dtype:
        return array
    result = np.empty(array.shape, dtype)
    cast_into(where, array, result)
    return result


def cast_into(where: str, array: np.ndarray[Any, Any], result: np.ndarray[Any, Any]) -> None:
    """As `cast`, into the contiguous array `result` of the same shape and the target dtype."""
    source, target = array.reshape(-1), result.reshape(-1)
    lost = 0
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for start in range(0, source.size, _BLOCK):
            part, out = source[start : start + _BLOCK], target[start : start + _BLOCK]
            near = _round_once(part, out)
            if not _all_finite(near):
                lost += int((~np.isfinite(out) & np.isfinite(part)).sum())
    if lost:
        _refuse(where, source, lost, result.dtype.name)


def _round_once(part: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cast `part` into `out`; returns what tells whether all numbers stayed finite."""
    if out.dtype.name in ("float32", "float16") or (out.dtype.name != "bfloat16" and part.dtype != np.float64):
        out[:] = part
        return out
    near = part.astype(np.float32, copy=False)
    if part.dtype != np.float64:
        out[:] = near
    elif out.dtype.name == "bfloat16":
        out[:] = near
        # ml_dtypes goes from 64 bits through 32; only a halt on a tie makes the second rounding wrong.
        ties = np.flatnonzero(near.view(np.uint32) << _HALF == _TIE)
        out[ties] = _to_odd(part[ties])
    else:
        out[:] = _to_odd(part)
        return out
    return near


def _all_finite(near: np.ndarray[Any, Any]) -> bool:
    if near.dtype == np.float32:  # reductions are fast in this type alone; a NaN fails the comparison too
        return bool(near.max() <= _SAFE and near.min() >= -_SAFE)
    return bool(np.isfinite(near).all())


def _refuse(where: str, source: np.ndarray[Any, Any], lost: int, target: str) -> None:
    finite = np.abs(source[np.isfinite(source)].astype(np.float64))
    worst = float(finite.max()) if finite.size else math.nan
    raise InputError(
        f"{where}: {lost} values, up to {worst:.6g} in magnitude, do not fit {target}; choose a wider dtype"
    )


def _to_odd(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float64 -> float32 rounded to odd: the last bit records what was dropped, so that the next rounding is exact."""
    near = array.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    inexact = np.isfinite(array) & (back != array)
    away = inexact & (np.abs(back) > np.abs(array))
    odd = (bits - away.astype(np.uint32)) | inexact.astype(np.uint32)
    rounded: np.ndarray[Any, Any] = odd.view(np.float32)
    return rounded
