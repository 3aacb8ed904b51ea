"""Chunks of the tensors of one file, and who computes them ahead of the writing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

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
        return computed(self.task, self.start, self.stop)


def computed(task: TensorTask, start: int, stop: int) -> memoryview:
    """The bytes of rows [start, stop) of a tensor. TypeError where the task gives another shape or dtype."""
    rows = np.ascontiguousarray(task.rows(start, stop))
    expected = (stop - start, *task.shape[1:])
    if rows.shape != expected or rows.dtype != numpy_dtype(task.dtype):
        raise TypeError(
            f"tensor {task.name!r}: rows({start}, {stop}) returned {rows.dtype} {rows.shape},"
            f" expected {task.dtype} {expected}"
        )
    return rows.reshape(-1).view(np.uint8).data


def file_chunks(ordered: Sequence[TensorTask], offset: int) -> Iterator[Chunk]:
    """The chunks of tensors that lie one behind the other from byte `offset` on."""
    for task in ordered:
        for start, stop in chunk_grid(task.shape, itemsize(task.dtype)):
            count = (stop - start) * (task.nbytes // (task.shape[0] if task.shape else 1))
            yield Chunk(task, start, stop, offset, count)
            offset += count


class Crew(Protocol):
    """Who computes chunks. The bytes never depend on who does."""

    def pieces(self, chunks: Iterable[Chunk]) -> Generator[memoryview, None, None]:
        """The bytes of `chunks` in their order; a piece is valid until the next one is asked for."""
        ...


class Threads:
    """`jobs` threads of this process, at most `in_flight` (None: jobs + 1) chunks held at a time."""

    def __init__(self, jobs: int, in_flight: int | None = None) -> None:
        self.jobs, self.in_flight = jobs, in_flight or jobs + 1

    def pieces(self, chunks: Iterable[Chunk]) -> Generator[memoryview, None, None]:
        """See `Crew`."""
        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="chunk")
        try:
            yield from in_order(chunks, self.in_flight, lambda chunk: pool.submit(chunk.compute).result)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    chunks: Iterable[Chunk], in_flight: int, submit: Callable[[Chunk], Callable[[], memoryview]]
) -> Generator[memoryview, None, None]:
    """The results of `submit`, which begins a chunk and returns what waits for it; `in_flight` are begun at a time.

    Chunk i + in_flight is begun once whoever takes the pieces is done with chunk i.
    """
    window: deque[Callable[[], memoryview]] = deque()
    for chunk in chunks:
        window.append(submit(chunk))
        if len(window) >= in_flight:
            yield window.popleft()()
    while window:
        yield window.popleft()()
