"""One tensor of a table on its way: codes written chunk by chunk, then scales fitted and the error measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.errors import InputError
from ultramem_deploy.planning.scratch import QUANTIZE_BLOCK, quantize_scratch
from ultramem_deploy.storage import SCALE_DTYPE, STORAGES

from .codes import codes, fitted_scales, packed, unpacked

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TableTensor:
    """`name` [rows, width] of `source`, to be stored as `storage`; operators address `cores` rows in each."""

    name: str
    source: Checkpoint
    storage: str
    cores: int

    @property
    def rows(self) -> int:
        return self.source.info(self.name).shape[0]

    @property
    def width(self) -> int:
        return self.source.info(self.name).shape[1]

    @property
    def scales(self) -> str:
        """The name of the scales' tensor."""
        return f"{self.name}_scales"

    def codes_task(self) -> TensorTask:
        """The codes [rows, columns]."""
        kind, info = STORAGES[self.storage], self.source.info(self.name)
        shape = (self.rows, kind.columns(self.width))
        elements = chunk_elements(shape, kind.dtype) * self.width // max(1, shape[1])
        return TensorTask(self.name, kind.dtype, shape, self._codes, quantize_scratch(elements, info.dtype))

    def scales_task(self, scales: dict[str, np.ndarray]) -> TensorTask:
        """The scales [rows * cores], found in `scales` by the time that they are written."""
        shape = (self.rows * self.cores,)
        return TensorTask(self.scales, SCALE_DTYPE, shape, lambda start, stop: scales[self.scales][start:stop])

    def _codes(self, start: int, stop: int) -> np.ndarray:
        parts = [packed(self.storage, codes(self.storage, rows)).reshape(b - a, -1) for a, b, rows in
                 self._blocks(start, stop)]  # fmt: skip
        return np.concatenate(parts)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Rows a to b as the operator addresses them, float32 [(b - a) * cores, width / cores], a few at a time."""
        for first, last in self.spans(start, stop):
            yield first, last, self.addressed(first, last)

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """[start, stop) in pieces of about `QUANTIZE_BLOCK` numbers."""
        step = max(1, QUANTIZE_BLOCK // max(1, self.width))
        return [(row, min(row + step, stop)) for row in range(start, stop, step)]

    def addressed(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), float32 [(stop - start) * cores, width / cores]; InputError where one is not finite."""
        rows = self.source.read_rows(self.name, start, stop).astype(np.float32)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise InputError(
                f"quantize: tensor {self.name}: row {start + int(finite.argmin())} is not finite, which codes "
                "cannot store; inspect the source"
            )
        return rows.reshape(-1, self.width // self.cores)


@dataclass(frozen=True)
class Error:
    """How far decoded rows lie from the source's: norms over the whole tensor, and the row that is hit hardest."""

    relative_rms: float
    cosine: float
    worst_row: int
    worst_row_relative_error: float
    worst_row_cosine: float


@dataclass(frozen=True)
class _Part:
    """Of some rows: the scales, sums of |x|^2, |y|^2, <x,y>, |x-y|^2, and the worst row with its error and cosine."""

    scales: np.ndarray
    sums: np.ndarray
    worst: tuple[float, int, float]


def fit_and_measure(
    table: TableTensor, written: Checkpoint, jobs: int, progress: Progress | None = None
) -> tuple[np.ndarray, Error]:
    """The scales float32 [rows * cores] of the codes in `written`, and the error of what they decode to."""
    spans = table.spans(0, table.rows)
    parts: list[_Part] = []
    with ThreadPoolExecutor(jobs) as pool:
        for part in pool.map(lambda span: _part(table, written, *span), spans):
            parts.append(part)
            if progress:
                progress(len(parts), len(spans), f"measuring {table.name}")
    source, stored, along, off = np.sum([part.sums for part in parts], axis=0)
    error, row, cosine = max((part.worst for part in parts), key=lambda worst: worst[0])
    norm = math.sqrt(source * stored)
    found = Error(math.sqrt(off / source) if source else 0.0, along / norm if norm else 1.0, row, error, cosine)
    return np.concatenate([part.scales for part in parts]), found


def _part(table: TableTensor, written: Checkpoint, start: int, stop: int) -> _Part:
    x = table.addressed(start, stop)
    stored = written.read_rows(table.name, start, stop)
    numbers = unpacked(table.storage, stored.reshape(len(x), -1))
    scales = fitted_scales(x, numbers)
    y = numbers * scales[:, None]
    sums = [_by_row(a, b, table.cores) for a, b in ((x, x), (y, y), (x, y), (x - y, x - y))]
    size, stored_size, along, off = sums
    relative = np.sqrt(np.divide(off, size, out=np.zeros_like(off), where=size > 0))
    row = int(relative.argmax())
    norm = math.sqrt(size[row] * stored_size[row])
    worst = (float(relative[row]), start + row, float(along[row]) / norm if norm else 1.0)
    return _Part(scales, np.sum(sums, axis=1), worst)


def _by_row(left: np.ndarray, right: np.ndarray, cores: int) -> np.ndarray:
    """Inner products of whole table rows, float64 [rows]."""
    result: np.ndarray = np.einsum("ij,ij->i", left, right, dtype=np.float64).reshape(-1, cores).sum(1)
    return result
