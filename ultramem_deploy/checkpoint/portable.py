"""Tensor tasks as bytes that another process can compute from."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np

from ultramem_deploy.checkpoint.writer import TensorTask

_CARRIED_BYTES = 1 << 20


class NotPortableError(Exception):
    """The tasks hold what belongs to this process."""


def packed(tasks: Sequence[TensorTask]) -> bytes:
    """The tasks for `unpacked`, None in place of resident ones.

    NotPortableError where one holds an open file, or an array of more than 1 MiB.
    """
    stream = io.BytesIO()
    try:
        pickler: Any = _Pickler
        pickler(stream, protocol=5).dump([None if task.resident else task for task in tasks])
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise NotPortableError(str(error)) from None
    return stream.getvalue()


def unpacked(data: bytes) -> list[TensorTask]:
    """What `packed` took, resident tasks excepted."""
    tasks: list[TensorTask] = pickle.loads(data)
    return tasks


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        # A mapped file would travel as a copy of all it maps.
        if isinstance(obj, np.ndarray) and obj.nbytes > _CARRIED_BYTES:
            raise NotPortableError(f"an array of {obj.nbytes} bytes")
        base: Any = super()
        return base.reducer_override(obj)
