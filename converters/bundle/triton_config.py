"""config.pbtxt of a model in a repository of Triton Inference Server, from its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import InputError

NAME = "ultramem"
VERSION_FOLDER = "1"
CONFIG = f"{NAME}/config.pbtxt"
# How long a request may wait for others of its shape.
QUEUE_MICROSECONDS = 500
_TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int64": "INT64", "int32": "INT32"}


@dataclass(frozen=True)
class Port:
    """An input or output: its dtype by NumPy's name, its sizes behind the batch, -1 where one varies."""

    name: str
    dtype: str
    sizes: Sequence[int]

    def line(self, kind: str) -> str:
        """Triton counts the batch by itself. Raises InputError for a type that has no place in a configuration."""
        if self.dtype not in _TYPES:
            raise InputError(f"{self.name}: type {self.dtype} has no place in a Triton configuration")
        sizes = ", ".join(map(str, self.sizes))
        return f'{kind} {{ name: "{self.name}" data_type: TYPE_{_TYPES[self.dtype]} dims: [ {sizes} ] }}'


def configuration(
    backend: str, inputs: Iterable[Port], outputs: Iterable[Port], *, max_batch: int, device: str, more: Sequence[str]
) -> str:
    """The text; `device` is what follows `kind:` of the instances, `more` are lines of their own."""
    parts = [f'name: "{NAME}"', f'backend: "{backend}"', f"max_batch_size: {max_batch}"]
    parts += [port.line("input") for port in inputs]
    parts += [port.line("output") for port in outputs]
    parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    parts.append(f"instance_group [ {{ kind: {device} }} ]")
    return "\n".join([*parts, *more]) + "\n"
