"""From rows of floats to codes, and from codes to the scales that fit them best.

A code is chosen with a trial scale; the scale that is stored is refitted to the codes afterwards, by least squares:
s = <x, q> / <q, q>, which leaves the squared error |x|^2 - <x, q>^2 / <q, q>.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import numpy_dtype
from ultramem_deploy.storage import STORAGES

SHRINK = tuple(1 - 0.05 * step for step in range(15))
"""Trial scales of int4, as fractions of the one that reaches a row's largest number.

Sixteen levels are so coarse that clipping a few outliers pays for finer steps: 0.7 is best for a Gaussian row of a
thousand numbers, less for heavier tails.
"""

Rows = np.ndarray[Any, np.dtype[np.float32]]


def codes(storage: str, rows: Rows) -> Rows:
    """The numbers that rows float32 [n, width] are stored as, before packing: float32 [n, width]; rows are finite."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    largest[largest == 0] = 1
    # To [-1, 1] first: the step of a tiny row would be a subnormal number.
    unit: Rows = rows / largest
    top = np.float32(STORAGES[storage].largest)
    if storage == "int4":
        return _searched(unit, top)
    scaled: Rows = unit * top
    return np.rint(scaled) if storage == "int8" else scaled


def _searched(unit: Rows, top: np.float32) -> Rows:
    """Of the codes that each trial scale gives, those whose refitted scale leaves the smallest squared error."""
    best, kept = np.full(len(unit), -1.0, np.float32), np.empty_like(unit)
    for shrink in SHRINK:
        trial = np.clip(np.rint(unit * (top / np.float32(shrink))), -top - 1, top)
        explained = _explained(unit, trial)
        better = explained > best
        best[better] = explained[better]
        kept[better] = trial[better]
    return kept


def _explained(rows: Rows, numbers: Rows) -> Rows:
    """<x, q>^2 / <q, q>, float32 [n]: what of |x|^2 the best scale of q explains; 0 where q is 0."""
    along, size = dots(rows, numbers), dots(numbers, numbers)
    return _divided(along * along, size)


def fitted_scales(rows: Rows, numbers: Rows) -> Rows:
    """float32 [n]: the scale of each row of codes that is nearest to `rows`; 0 where all codes are 0."""
    return _divided(dots(rows, numbers), dots(numbers, numbers))


def _divided(above: Rows, below: Rows) -> Rows:
    """The quotient, 0 where `below` is 0."""
    result: Rows = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return result


def dots(left: Rows, right: Rows) -> Rows:
    """Row by row inner products, float32 [n]."""
    result: Rows = np.einsum("ij,ij->i", left, right)
    return result


def packed(storage: str, numbers: Rows) -> np.ndarray:
    """The stored form of codes [rows, width]: int8, float8, or two int4 in a byte, the even column low."""
    if storage != "int4":
        return numbers.astype(numpy_dtype(STORAGES[storage].dtype))
    nibbles = (numbers + np.float32(8)).astype(np.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))


def unpacked(storage: str, stored: np.ndarray) -> Rows:
    """The codes float32 [rows, width] of their stored form."""
    if storage != "int4":
        return stored.astype(np.float32)
    pairs = np.stack([stored & np.uint8(15), stored >> np.uint8(4)], axis=-1)
    return pairs.reshape(len(stored), -1).astype(np.float32) - np.float32(8)
