"""What is written: tensors as tasks, their grid of chunks, the shards they are put into and each shard's header."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.cast import cast, cast_scratch, check_cast
from ultramem_deploy.checkpoint.header import MAX_HEADER_BYTES, SAFETENSORS_CODES, itemsize, shown
from ultramem_deploy.checkpoint.reader import Checkpoint
from ultramem_deploy.errors import InputError

CHUNK_BYTES = 16 << 20
_ALIGNMENT = 64  # of the data section: what vector loads and the runtimes' memory maps like; the format asks for 8
_CODES = {name: code for code, name in SAFETENSORS_CODES.items()}


@dataclass(frozen=True)
class TensorTask:
    """One tensor to write. `rows(start, stop)` computes rows [start, stop) of the first axis, already in `dtype`.

    It is called from several threads or processes and must depend on its arguments alone. A 0-d tensor counts as shape
    (1,). `scratch` is what it holds beside its result while it computes one chunk, in bytes; `resident` says that the
    tensor is in memory already, so that no other process computes it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray[Any, Any]]
    scratch: int = 0
    resident: bool = False

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of the largest chunk."""
        return chunk_elements(self.shape, self.dtype) * itemsize(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * itemsize(self.dtype)

    @classmethod
    def copy(
        cls, checkpoint: Checkpoint, name: str, new_name: str | None = None, dtype: str | None = None
    ) -> TensorTask:
        """Tensor `name` of a checkpoint, renamed and cast if asked (floats only, rounded once to nearest even).

        InputError when the tensor is missing or the cast is not between floats; at writing, when a value does not fit.
        """
        info = checkpoint.info(name)
        target = dtype or info.dtype
        where = f"{info.file.name}: tensor {shown(name)}"
        check_cast(where, info.dtype, target)

        def rows(start: int, stop: int) -> np.ndarray[Any, Any]:
            return cast(where, checkpoint.read_rows(name, start, stop), target)

        scratch = cast_scratch(chunk_elements(info.shape, target), info.dtype, target)
        return cls(new_name or name, target, info.shape, rows, scratch)

    @classmethod
    def of(cls, name: str, array: np.ndarray[Any, Any]) -> TensorTask:
        """A tensor that is in memory already; InputError when safetensors has no such dtype."""
        if array.dtype.name not in _CODES:
            raise InputError(
                f"tensor {shown(name)}: dtype {array.dtype} cannot be written; expected one of {', '.join(_CODES)}"
            )
        flat = array if array.ndim else array.reshape(1)
        return cls(name, array.dtype.name, tuple(array.shape), lambda start, stop: flat[start:stop], resident=True)


@dataclass(frozen=True)
class Shard:
    """One file to write: its name and its tensors, sorted by name."""

    file: str
    tasks: tuple[TensorTask, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(header_bytes(data_order(self.tasks))) + sum(task.nbytes for task in self.tasks)


def chunk_grid(shape: tuple[int, ...], itemsize: int) -> list[tuple[int, int]]:
    """Row ranges [start, stop) of about 16 MiB each, one row at least; depends on the shape and item size alone."""
    rows, step = _rows_and_step(shape, itemsize)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)] if step else []


def _rows_and_step(shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Rows of a tensor, and how many of them make a chunk: 0 where there are no bytes."""
    rows, row_bytes = (shape[0], math.prod(shape[1:]) * itemsize) if shape else (1, itemsize)
    return rows, min(rows, max(1, CHUNK_BYTES // row_bytes)) if row_bytes else 0


def chunk_elements(shape: tuple[int, ...], dtype: str) -> int:
    """Numbers in the largest chunk of a tensor, which may be far too large to list its chunks."""
    return _rows_and_step(shape, itemsize(dtype))[1] * math.prod(shape[1:])


def plan_shards(tasks: Sequence[TensorTask], group: str, max_shard_bytes: int) -> list[Shard]:
    """Split tensors over files of at most `max_shard_bytes`, in order of name; a tensor is never split.

    One file is called model-GROUP.safetensors, several model-GROUP-00001-of-0000N.safetensors.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", group) or max_shard_bytes <= 0:
        raise ValueError(f"group {group!r} must be letters, digits, '_.-'; max_shard_bytes {max_shard_bytes} positive")
    bins: list[list[TensorTask]] = []
    room = 0
    for task in sorted(tasks, key=lambda task: task.name):
        if bins and bins[-1][-1].name == task.name:
            raise InputError(f"tensor {shown(task.name)} would be written twice; two sources map to the same name")
        if not bins or task.nbytes > room:
            bins.append([])
            room = max_shard_bytes
        bins[-1].append(task)
        room -= task.nbytes
    if len(bins) == 1:
        return [Shard(f"model-{group}.safetensors", tuple(bins[0]))]
    total = len(bins)
    return [Shard(f"model-{group}-{i:05d}-of-{total:05d}.safetensors", tuple(one)) for i, one in enumerate(bins, 1)]


def data_order(tasks: Sequence[TensorTask]) -> list[TensorTask]:
    """The tensors as they lie in a file."""
    # Widest items first keeps every tensor aligned to its item size, as the safetensors library does.
    return sorted(tasks, key=lambda task: (-itemsize(task.dtype), task.name))


def header_bytes(ordered: Sequence[TensorTask]) -> bytes:
    """The length prefix and the JSON, its keys sorted by name, padded with spaces to the alignment."""
    entries: dict[str, Any] = {}
    offset = 0
    for task in ordered:
        if task.name in entries or task.name == "__metadata__":
            raise InputError(f"tensor {shown(task.name)} cannot be written: the name is taken")
        span = [offset, offset + task.nbytes]
        entries[task.name] = {"dtype": _CODES[task.dtype], "shape": list(task.shape), "data_offsets": span}
        offset += task.nbytes
    document = {"__metadata__": {"format": "pt"}} | dict(sorted(entries.items()))
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError(f"{len(ordered)} tensors make a header of {len(text)} bytes, at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text
