"""Which tensors of two canonical checkpoints differ, and in which rows; read in chunks, compared byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorInfo, TensorTask
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.header import itemsize
from ultramem_deploy.checkpoint.writer import chunk_grid

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Change:
    """One tensor that differs. `rows` int64: the differing rows of the first axis; None where the whole tensor is new.

    `base_sha256` is that of the tensor's bytes in the base, None where the base lacks it.
    """

    name: str
    kind: str
    rows: np.ndarray[Any, np.dtype[np.int64]] | None
    total_rows: int
    base_sha256: str | None


def comparisons_within(base: Checkpoint, memory_budget: int | None) -> int:
    """Chunks of both checkpoints that `memory_budget` bytes have room for, at most 2; InputError where none fits."""
    tasks = [TensorTask.copy(base, name) for name in base.tensors]
    # Beside one side's chunk: the other's, and a byte of the comparison for each of theirs.
    pairs = [replace(task, scratch=2 * task.chunk_nbytes) for task in tasks]
    return min(2, chunks_in_flight(pairs, 2, memory_budget))


def compare_checkpoints(
    base: Checkpoint, other: Checkpoint, jobs: int = 2, progress: Progress | None = None
) -> list[Change]:
    """The changes from `base` to `other`, by name. kind: "rows", "replaced" (shape or dtype), "added" or "removed".

    `jobs` chunks are compared at a time. Values are compared as bytes: 0.0 and -0.0 differ, two equal NaNs do not.
    """
    names = sorted({*base.tensors, *other.tensors})
    total = sum(info.nbytes for info in base.tensors.values())
    done, changes = 0, []
    for name in names:
        before, after = base.tensors.get(name), other.tensors.get(name)
        change = _change(name, base, other, before, after, jobs)
        if change is not None:
            changes.append(change)
        done += before.nbytes if before else 0
        if progress:
            progress(done, total, name)
    return changes


def _change(
    name: str, base: Checkpoint, other: Checkpoint, before: TensorInfo | None, after: TensorInfo | None, jobs: int
) -> Change | None:
    if before is None or after is None:
        kind, info = ("added", after) if before is None else ("removed", before)
        return Change(name, kind, None, _rows(info), None if before is None else tensor_sha256(base, name))
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return Change(name, "replaced", None, _rows(after), tensor_sha256(base, name))
    if _same_bytes(before, after):
        return None
    rows = _different_rows(base, other, before, jobs)
    return Change(name, "rows", rows, _rows(after), tensor_sha256(base, name)) if len(rows) else None


def _rows(info: TensorInfo | None) -> int:
    return info.shape[0] if info and info.shape else 1


def _same_bytes(before: TensorInfo, after: TensorInfo) -> bool:
    """Whether both are the same range of one file, as hard-linked shards are."""
    return before.offset == after.offset and before.file.samefile(after.file)


def _different_rows(
    base: Checkpoint, other: Checkpoint, info: TensorInfo, jobs: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    def compare(span: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        one, two = (_bytes(side.read_rows(info.name, *span)) for side in (base, other))
        return np.flatnonzero((one != two).any(axis=1)).astype(np.int64) + span[0]

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(compare, chunk_grid(info.shape, itemsize(info.dtype))))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _bytes(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return rows.reshape(len(rows), -1).view(np.uint8)


def tensor_sha256(checkpoint: Checkpoint, name: str) -> str:
    """SHA-256 of a tensor's bytes, hex."""
    digest = hashlib.sha256()
    for rows in _chunks(checkpoint, name):
        digest.update(rows)
    return digest.hexdigest()


def _chunks(checkpoint: Checkpoint, name: str) -> Iterator[Any]:
    info = checkpoint.info(name)
    for start, stop in chunk_grid(info.shape, itemsize(info.dtype)):
        yield _bytes(checkpoint.read_rows(name, start, stop)).data
