"""Which crew computes the chunks of a stage: threads, processes, or a Ray cluster; never changes a byte."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from ultramem_deploy.checkpoint.budget import chunks_in_flight, processes_within
from ultramem_deploy.checkpoint.chunks import Crew, Threads
from ultramem_deploy.checkpoint.portable import NotPortableError
from ultramem_deploy.checkpoint.processes import Processes
from ultramem_deploy.checkpoint.ray_cluster import RayCluster
from ultramem_deploy.checkpoint.writer import TensorTask
from ultramem_deploy.errors import InputError

EXECUTORS = ("local", "threads", "processes", "ray")
PROCESSES_FROM = 1 << 30
"""Bytes to compute from which starting processes (less than a second) pays."""


@contextlib.contextmanager
def open_crew(
    executor: str, tasks: Sequence[TensorTask], jobs: int, budget: int | None = None, held: int = 0
) -> Iterator[Crew]:
    """`jobs` threads or processes at a time, as many as `budget` bytes have room for, each process holding `held`.

    "ray" takes every core of the cluster instead. "local" takes processes where there is enough to do, the tasks can
    travel and two fit. Raises InputError.
    """
    amount = sum(task.nbytes for task in tasks if not task.resident)
    few = amount == 0 or (executor == "local" and (jobs == 1 or amount < PROCESSES_FROM))
    if executor == "threads" or few:
        yield Threads(jobs, chunks_in_flight(tasks, jobs, budget, held))
        return
    workers = processes_within(tasks, jobs, budget, held)
    try:
        crew = _many(executor, tasks, workers, budget) if executor != "local" or workers > 1 else None
    except NotPortableError as error:
        if executor != "local":
            raise InputError(
                f"--executor {executor}: the source cannot be read from other processes ({error}); choose local"
            ) from None
        crew = None
    if crew is None:
        yield Threads(jobs, chunks_in_flight(tasks, jobs, budget, held))
        return
    with crew:
        yield crew


def _many(executor: str, tasks: Sequence[TensorTask], workers: int, budget: int | None) -> Processes | RayCluster:
    largest = max((task.chunk_nbytes for task in tasks), default=0)
    if executor == "ray":
        return RayCluster(tasks, max(1, budget // largest) if budget and largest else None)
    return Processes(tasks, workers, workers + 1, largest)
