"""Tensors made from other tensors without reading them: slices, stacks, permutations, computed row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import numpy_dtype, shown
from ultramem_deploy.errors import InputError

from .base import SourceTensor

Array = np.ndarray[Any, Any]


def whole(tensor: SourceTensor) -> Array:
    """Everything, in the tensor's shape: for small tensors."""
    count = tensor.shape[0] if tensor.shape else 1
    return tensor.rows(0, count).reshape(tensor.shape)


def rows_of(tensor: SourceTensor, start: int, stop: int) -> SourceTensor:
    """Rows [start, stop) of the first axis."""
    shape = (stop - start, *tensor.shape[1:])
    return SourceTensor(tensor.name, shape, tensor.dtype, lambda a, b: tensor.rows(start + a, start + b))


def mapped(tensor: SourceTensor, shape: tuple[int, ...], change: Callable[[Array], Array]) -> SourceTensor:
    """Rows [a, b) are `change` of the source's rows [a, b); `shape` is that of the whole result."""
    return SourceTensor(tensor.name, shape, tensor.dtype, lambda a, b: change(tensor.rows(a, b)))


def reshaped(tensor: SourceTensor, shape: tuple[int, ...]) -> SourceTensor:
    """Another shape of the same numbers: for small tensors, which are read whole."""
    return SourceTensor(tensor.name, shape, tensor.dtype, lambda a, b: whole(tensor).reshape(shape)[a:b])


def stacked(tensors: Sequence[SourceTensor]) -> SourceTensor:
    """A new first axis over tensors of one shape and dtype."""
    first = tensors[0]
    shape = (len(tensors), *first.shape)
    return SourceTensor(first.name, shape, first.dtype, lambda a, b: np.stack([whole(t) for t in tensors[a:b]]))


def joined(tensors: Sequence[SourceTensor]) -> SourceTensor:
    """Tensors one after another on the first axis."""
    starts = np.cumsum([0, *(tensor.shape[0] for tensor in tensors)]).tolist()

    def rows(start: int, stop: int) -> Array:
        parts = [
            tensor.rows(max(start, first) - first, min(stop, last) - first)
            for tensor, first, last in zip(tensors, starts, starts[1:], strict=False)
            if max(start, first) < min(stop, last)
        ]
        return np.concatenate(parts)

    return SourceTensor(tensors[0].name, (starts[-1], *tensors[0].shape[1:]), tensors[0].dtype, rows)


def beside(tensors: Sequence[SourceTensor]) -> SourceTensor:
    """Tables side by side on the second axis."""
    first = tensors[0]
    shape = (first.shape[0], sum(tensor.shape[1] for tensor in tensors))
    return SourceTensor(first.name, shape, first.dtype, lambda a, b: np.concatenate([t.rows(a, b) for t in tensors], 1))


def constant(name: str, shape: tuple[int, ...], dtype: str, value: float) -> SourceTensor:
    """The same number everywhere."""
    kind = numpy_dtype(dtype)
    return SourceTensor(name, shape, dtype, lambda a, b: np.full((b - a, *shape[1:]), value, kind))


def held(name: str, array: Array) -> SourceTensor:
    """A small array that is in memory already."""
    return SourceTensor(name, tuple(array.shape), array.dtype.name, lambda a, b: array[a:b])


def checked_indices(tensor: SourceTensor, limit: int) -> SourceTensor:
    """A vector of indices as int64; reading rows that hold one outside 0 to limit-1 raises InputError."""

    def rows(start: int, stop: int) -> Array:
        found = tensor.rows(start, stop).astype(np.int64)
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < limit:
            raise InputError(
                f"tensor {shown(tensor.name)}: holds indices from {found.min()} to {found.max()}, expected 0 to"
                f" {limit - 1}; the checkpoint is damaged"
            )
        return found

    return SourceTensor(tensor.name, tensor.shape, "int64", rows)
