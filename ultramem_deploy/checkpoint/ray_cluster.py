"""The nodes of a Ray cluster compute chunks (optional extra `ray`); this machine writes them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache, partial
from types import TracebackType
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.chunks import Chunk, computed, in_order
from ultramem_deploy.checkpoint.portable import packed, unpacked
from ultramem_deploy.checkpoint.processes import ONE_THREAD
from ultramem_deploy.checkpoint.writer import TensorTask
from ultramem_deploy.errors import InputError


class RayCluster:
    """Context manager: every core of the cluster computes a chunk; at most `held` of them (None: any) are held here.

    Joins the cluster that the caller's Ray is connected to, the one that RAY_ADDRESS names, the one that runs here, or
    else starts one of this machine alone. Each node needs this package, and the source under the same path. A node that
    is lost costs its chunks, which others compute again. NotPortableError where the tasks cannot travel.
    """

    def __init__(self, tasks: Sequence[TensorTask], held: int | None) -> None:
        self._ray = ray_library()
        self._packed, self._numbers = packed(tasks), {id(task): number for number, task in enumerate(tasks)}
        self._held = held

    def __enter__(self) -> RayCluster:
        ray = self._ray
        self._joined = not ray.is_initialized()
        if self._joined:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self._in_flight = min(cores + 1, self._held or cores + 1)
        self._known = ray.put(self._packed)
        self._compute = ray.remote(num_cpus=1, runtime_env={"env_vars": ONE_THREAD})(compute_packed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._joined:
            self._ray.shutdown()

    def pieces(self, chunks: Iterable[Chunk]) -> Generator[memoryview, None, None]:
        """See `Crew`."""
        return in_order(chunks, self._in_flight, self._begin)

    def _begin(self, chunk: Chunk) -> Callable[[], memoryview]:
        if chunk.task.resident:
            return chunk.compute
        number = self._numbers[id(chunk.task)]
        return partial(self._wait, self._compute.remote(self._known, number, chunk.start, chunk.stop), chunk)

    def _wait(self, reference: Any, chunk: Chunk) -> memoryview:
        problems = self._ray.exceptions
        try:
            return memoryview(self._ray.get(reference))
        except problems.RayTaskError as error:
            raise error.cause from None
        except problems.RayError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--executor ray: tensor {chunk.task.name!r} was not computed: {reason}; look after the cluster, then"
                " run again: what is written is kept"
            ) from None


def compute_packed(data: bytes, number: int, start: int, stop: int) -> np.ndarray[Any, Any]:
    """The bytes of rows [start, stop) of task `number` of what `packed` made."""
    return np.frombuffer(computed(_tasks(data)[number], start, stop), np.uint8)


@lru_cache(maxsize=1)
def _tasks(data: bytes) -> list[TensorTask]:
    return unpacked(data)


def ray_library() -> Any:
    """The module `ray`. Raises InputError where it is not installed."""
    try:
        importlib.import_module("ray.exceptions")
        return importlib.import_module("ray")
    except ImportError:
        raise InputError("--executor ray: Ray is not installed; pip install 'ultramem-deploy[ray]'") from None
