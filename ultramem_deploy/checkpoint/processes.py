"""Processes of this machine that compute chunks into memory that they share with this one."""

from __future__ import annotations

import mmap
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from types import TracebackType

from ultramem_deploy.checkpoint.chunks import Chunk, in_order
from ultramem_deploy.checkpoint.portable import packed
from ultramem_deploy.checkpoint.writer import TensorTask
from ultramem_deploy.errors import InputError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment in which a process computes a chunk by one thread."""


class Processes:
    """Context manager: `jobs` workers that know `tasks`, and one slot of shared memory for each chunk in flight.

    The workers are plain interpreters that run `checkpoint.worker`: nothing of the caller's program is forked or
    imported again, and they end with this process, however it ends. NotPortableError where the tasks cannot travel.
    """

    def __init__(self, tasks: Sequence[TensorTask], jobs: int, in_flight: int, slot_bytes: int) -> None:
        self._packed, self._numbers = packed(tasks), {id(task): number for number, task in enumerate(tasks)}
        self._jobs, self._in_flight = jobs, in_flight
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def __enter__(self) -> Processes:
        handle = os.memfd_create("chunks")
        try:
            os.ftruncate(handle, self._in_flight * self._slot_bytes)
            self._memory = memoryview(mmap.mmap(handle, self._in_flight * self._slot_bytes))
            for _ in range(self._jobs):
                self._start(handle)
        finally:
            os.close(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, connection in self._workers:
            connection.close()
        for worker, _ in self._workers:
            if kind is not None:
                worker.kill()
            worker.wait()

    def pieces(self, chunks: Iterable[Chunk]) -> Generator[memoryview, None, None]:
        """See `Crew`."""
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="worker")
        begun = 0

        def submit(chunk: Chunk) -> Callable[[], memoryview]:
            nonlocal begun
            slot, begun = begun % self._in_flight, begun + 1
            return pool.submit(self._compute, chunk, slot * self._slot_bytes).result

        try:
            yield from in_order(chunks, self._in_flight, submit)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _compute(self, chunk: Chunk, at: int) -> memoryview:
        if chunk.task.resident:
            return chunk.compute()
        connection = self._idle.get()
        try:
            connection.send((self._numbers[id(chunk.task)], chunk.start, chunk.stop, at))
            error = connection.recv()
        except (EOFError, OSError):
            raise InputError(
                f"--jobs: a process that computed tensor {chunk.task.name!r} was killed, perhaps by the system for want"
                " of memory; run again with fewer --jobs: what is written is kept"
            ) from None
        finally:
            self._idle.put(connection)  # a broken one too: whoever waits for it must not wait for ever
        if error is not None:
            raise error
        return self._memory[at : at + chunk.nbytes]

    def _start(self, memory: int) -> None:
        ours, theirs = Pipe()
        handles = (theirs.fileno(), memory)
        command = [sys.executable, "-m", "ultramem_deploy.checkpoint.worker", *map(str, handles)]
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # In a group of its own: a terminal interrupts groups, and whether to end is for this process to say.
        worker = subprocess.Popen(command, pass_fds=handles, env=environment, stdin=subprocess.DEVNULL, process_group=0)
        theirs.close()
        ours.send_bytes(self._packed)
        self._workers.append((worker, ours))
        self._idle.put(ours)
