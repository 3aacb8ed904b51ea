"""The products of an expansion, rounded once into the rows where they belong."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

from ultramem_deploy.checkpoint.cast import cast
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.plugins import ort_library


def round_rows(where: str, products: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
    """out[rows] = products, float64 [n, d] rounded once to nearest even; out [N, d] has contiguous rows.

    Into bfloat16 by the native kernel where the library is built, which takes a quarter of NumPy's time and gives the
    same bits. InputError naming `where` when a finite value does not fit.
    """
    native = _kernel() if out.dtype.name == "bfloat16" else None
    if native is None:
        out[rows] = cast(where, products, out.dtype.name)
        return
    numbers, places = np.ascontiguousarray(products), np.ascontiguousarray(rows, np.int64)
    count, width = numbers.shape
    if native(numbers.ctypes.data, out.ctypes.data, places.ctypes.data, count, width, out.strides[0] // out.itemsize):
        cast(where, products, out.dtype.name)  # says which


@cache
def _kernel() -> Callable[[int, int, int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(str(ort_library().resolve())).ultramem_round_rows
    except (InputError, OSError, AttributeError):
        return None
    function.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3]
    function.restype = ctypes.c_int64
    return function
