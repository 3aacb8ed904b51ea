"""A deserialised engine: its tables and its buffers on the device, and one step of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
import torch

from ..errors import InputError
from .engine_manifest import Manifest, TableBinding

TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int64": torch.int64}
PLACE = "ULTRAMEM_GPU_TABLES"
RESERVE = 1 << 30
"""Bytes of device memory that tables leave free, for activations and caches."""

_resident: WeakValueDictionary[tuple[Any, ...], torch.Tensor] = WeakValueDictionary()


def load_tables(directory: Path, tables: Mapping[str, TableBinding], device: torch.device) -> dict[str, torch.Tensor]:
    """The bytes (uint8) of every table, by input name; one copy of each in a process, however many engines share it.

    In device memory where it has room, else in pinned host memory, which the GPU reads in place; $ULTRAMEM_GPU_TABLES
    chooses: auto, device or host. Raises InputError for another value.
    """
    return {name: _resident_bytes(directory, table, device) for name, table in tables.items()}


def _resident_bytes(directory: Path, table: TableBinding, device: torch.device) -> torch.Tensor:
    key = (table.sha256, table.offset, table.nbytes, device)
    held = _resident.get(key)
    if held is None:
        mapped = np.memmap(directory / table.file, np.uint8, "c", table.offset, (table.nbytes,))
        held = _placed(torch.from_numpy(mapped), device)
        _resident[key] = held
    return held


def _placed(mapped: torch.Tensor, device: torch.device) -> torch.Tensor:
    place = os.environ.get(PLACE) or "auto"
    if place not in ("auto", "device", "host"):
        raise InputError(f"{PLACE}: expected auto, device or host, found {place!r}; correct it or unset it")
    fits = device.type != "cuda" or torch.cuda.mem_get_info(device)[0] > mapped.nbytes + RESERVE
    if place == "device" or (place == "auto" and fits) or device.type != "cuda":
        return mapped.to(device, copy=True)
    return torch.empty_like(mapped, pin_memory=True).copy_(mapped)


class LoadedEngine:
    """Runs the engine `engine` (ICudaEngine) on `device`, a context for each of its profiles.

    tables: as `load_tables` gives them; kept alive and bound to every context once.
    """

    def __init__(
        self, engine: Any, manifest: Manifest, tables: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        self.engine, self.manifest, self.tables, self.device = engine, manifest, dict(tables), device
        self.stream: Any = cast(Any, torch.cuda.Stream)(device) if device.type == "cuda" else None
        # TensorRT wants an address for a tensor of no elements too.
        self._spare = torch.empty(256, dtype=torch.uint8, device=device)
        self._types = {port["name"]: TORCH_TYPES[port["dtype"]] for port in (*manifest.inputs, *manifest.outputs)
                       if port["name"] not in manifest.tables}  # fmt: skip
        self._outputs = [port["name"] for port in manifest.outputs]
        self._contexts = [self._context(index) for index in range(len(manifest.profiles))]

    def dtype(self, name: str) -> torch.dtype:
        """The type of an input or output that is no table."""
        return self._types[name]

    def run(self, profile: int, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every output by name, on the device, for inputs on the device; returns when they are computed.

        Raises InputError where TensorRT refuses the shapes or fails.
        """
        context = self._contexts[profile]
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            for name, tensor in feeds.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise InputError(
                        f"{name}: {list(tensor.shape)} is outside what the engine was built for; build it with --shapes"
                    )
                self._bind(context, name, tensor)
            results = {name: self._result(context, name) for name in self._outputs}
            if not context.execute_async_v3(self.stream.cuda_stream if self.stream else 0):
                raise InputError("the engine: TensorRT could not run a step; its log above says why")
        if self.stream:
            self.stream.synchronize()
        return results

    def _context(self, profile: int) -> Any:
        context = self.engine.create_execution_context()
        if context is None:
            raise InputError("the engine: no device memory for its activations; build it with smaller --shapes")
        context.set_optimization_profile_async(profile, self.stream.cuda_stream if self.stream else 0)
        for name, table in self.tables.items():
            self._bind(context, name, table)
        if self.stream:
            self.stream.synchronize()
        return context

    def _result(self, context: Any, name: str) -> torch.Tensor:
        shape = tuple(context.get_tensor_shape(name))
        tensor = torch.empty(shape, dtype=self._types[name], device=self.device)
        self._bind(context, name, tensor)
        return tensor

    def _bind(self, context: Any, name: str, tensor: torch.Tensor) -> None:
        context.set_tensor_address(name, tensor.data_ptr() or self._spare.data_ptr())
