"""Casts between float dtypes that round once, to nearest even, and refuse to turn a finite value into infinity."""

from __future__ import annotations

from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import numpy_dtype
from ultramem_deploy.errors import InputError

_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def check_cast(where: str, source: str, target: str) -> None:
    """InputError unless dtype `source` may be cast to `target`: the same, or both floats."""
    numpy_dtype(target)
    if source != target and not (source in _FLOATS and target in _FLOATS):
        raise InputError(
            f"{where}: {source} is not cast to {target}: only floats are cast, to floats ({', '.join(_FLOATS)})"
        )


def cast(where: str, array: np.ndarray[Any, Any], target: str) -> np.ndarray[Any, Any]:
    """`array` (any shape) in dtype `target`; InputError naming `where` when a finite value does not fit."""
    dtype = numpy_dtype(target)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        narrow = array
        if array.dtype == np.float64 and target not in ("float32", "float16"):
            narrow = _to_odd(array)  # ml_dtypes goes from 64 bits through 32: two roundings
        result: np.ndarray[Any, Any] = narrow.astype(dtype)
    lost = ~np.isfinite(result) & np.isfinite(array)
    if lost.any():
        worst = float(np.abs(array[lost].astype(np.float64)).max())
        raise InputError(
            f"{where}: {int(lost.sum())} values, up to {worst:.6g} in magnitude, do not fit {target};"
            " choose a wider dtype"
        )
    return result


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
