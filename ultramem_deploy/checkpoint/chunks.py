"""Chunks of the tensors of one file, and threads that compute them ahead of the writing."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ultramem_deploy.checkpoint.header import itemsize, numpy_dtype
from ultramem_deploy.checkpoint.writer import TensorTask, chunk_grid


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of a tensor; their bytes begin at `offset` of the file and are `nbytes` long."""

    task: TensorTask
    start: int
    stop: int
    offset: int
    nbytes: int

    def compute(self) -> memoryview:
        """Its bytes. TypeError where the task gives another shape or dtype than it said."""
        rows = np.ascontiguousarray(self.task.rows(self.start, self.stop))
        expected = (self.stop - self.start, *self.task.shape[1:])
        if rows.shape != expected or rows.dtype != numpy_dtype(self.task.dtype):
            raise TypeError(
                f"tensor {self.task.name!r}: rows({self.start}, {self.stop}) returned {rows.dtype} {rows.shape},"
                f" expected {self.task.dtype} {expected}"
            )
        return rows.reshape(-1).view(np.uint8).data


def file_chunks(ordered: Sequence[TensorTask], offset: int) -> Iterator[Chunk]:
    """The chunks of tensors that lie one behind the other from byte `offset` on."""
    for task in ordered:
        for start, stop in chunk_grid(task.shape, itemsize(task.dtype)):
            count = (stop - start) * (task.nbytes // (task.shape[0] if task.shape else 1))
            yield Chunk(task, start, stop, offset, count)
            offset += count


def by_threads(chunks: Iterable[Chunk], jobs: int, in_flight: int) -> Generator[memoryview, None, None]:
    """The bytes of `chunks` in their order, computed ahead by `jobs` threads, at most `in_flight` held at a time."""
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="chunk")
    window: deque[Future[memoryview]] = deque()
    try:
        for chunk in chunks:
            window.append(pool.submit(chunk.compute))
            if len(window) >= in_flight:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
