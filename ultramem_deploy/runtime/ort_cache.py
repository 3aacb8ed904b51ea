"""Key-value caches that stay in ONNX Runtime's own buffers from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from .ort_model import Opened, import_onnxruntime

FIRST_CAPACITY = 256


class Lane(ABC):
    """Rows that advance together: feeds tokens, keeps their cache."""

    def __init__(self, model: Opened, batch: int) -> None:
        self.model, self.batch, self.length = model, batch, 0
        self.results = [name for name in model.outputs if not name.startswith("present.")]
        self.pasts = [i.name for i in model.session.get_inputs() if i.name.startswith("past_key_values.")]
        self.binding = model.session.io_binding()
        # The order of first binding is the order of the values that a run returns: the results come first.
        self._bind_results()

    def run(self, input_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Append tokens int64 [B, S]; logits [B, S, V] and the traced values, by name. Raises InputError when full."""
        total = self.length + input_ids.shape[1]
        if self.model.positions and total > self.model.positions:
            raise InputError(f"{total} tokens: the model has {self.model.positions} positions; feed fewer")
        self.binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids, dtype=np.int64))
        self.binding.bind_cpu_input("attention_mask", np.ones((self.batch, total), np.int64))
        self._bind_results()
        self._bind_cache(total)
        self.model.session.run_with_iobinding(self.binding)
        values = self.binding.get_outputs()
        self.length = total
        self._keep_cache(values[len(self.results) :])
        return {name: value.numpy() for name, value in zip(self.results, values, strict=False)}

    def _bind_results(self) -> None:
        for name in self.results:
            self.binding.bind_output(name, "cpu")

    def buffer(self, name: str, tokens: int) -> np.ndarray:
        """Room for the keys or the values of one layer, as the input `name` wants them."""
        width = self.model.value_dim if name.endswith(".value") else self.model.head_dim
        return np.empty((self.batch, self.model.kv_heads, tokens, width), np.float32)

    @abstractmethod
    def _bind_cache(self, total: int) -> None:
        """Bind past_key_values and present for a step that ends with `total` tokens."""

    @abstractmethod
    def _keep_cache(self, values: list[Any]) -> None:
        """Take the present values that the step returned."""

    @abstractmethod
    def cache(self) -> dict[str, np.ndarray]:
        """The cache held now, float32 [B, kv_heads, length, head_dim], by the name of its input."""

    @abstractmethod
    def load(self, cache: Mapping[str, np.ndarray], length: int) -> None:
        """Start from a cache as `cache` returns it."""


class PackedLane(Lane):
    """past_key_values and present are one buffer with room to spare, which doubles when it is full."""

    def __init__(self, model: Opened, batch: int) -> None:
        super().__init__(model, batch)
        self._buffers: dict[str, np.ndarray] = {}
        self._capacity = 0

    def _bind_cache(self, total: int) -> None:
        if total > self._capacity:
            self._grow(max(total, 2 * self._capacity, FIRST_CAPACITY))

    def _grow(self, capacity: int) -> None:
        held, ort = self.cache() if self._buffers else {}, import_onnxruntime()
        for name in self.pasts:
            buffer = self.buffer(name, capacity)
            if name in held:
                buffer[:, :, : self.length] = held[name]
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._buffers[name] = buffer
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self._capacity = capacity

    def _keep_cache(self, values: list[Any]) -> None:
        return

    def cache(self) -> dict[str, np.ndarray]:
        return {name: buffer[:, :, : self.length] for name, buffer in self._buffers.items()}

    def load(self, cache: Mapping[str, np.ndarray], length: int) -> None:
        self.length = length
        self._grow(max(2 * length, FIRST_CAPACITY))
        for name, held in cache.items():
            self._buffers[name][:, :, :length] = held


class AppendedLane(Lane):
    """Every step returns the whole cache, which the next step reads."""

    def __init__(self, model: Opened, batch: int) -> None:
        super().__init__(model, batch)
        self._values: dict[str, Any] = {}
        self.load({name: self.buffer(name, 0) for name in self.pasts}, 0)

    def _bind_cache(self, total: int) -> None:
        for name, value in self._values.items():
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_output(name.replace("past_key_values", "present"), "cpu")

    def _keep_cache(self, values: list[Any]) -> None:
        self._values = dict(zip(self._values, values, strict=True))

    def cache(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._values.items()}

    def load(self, cache: Mapping[str, np.ndarray], length: int) -> None:
        make = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self.length = length
        self._values = {name: make(np.ascontiguousarray(held)) for name, held in cache.items()}


def new_lane(model: Opened, batch: int) -> Lane:
    """A lane with an empty cache, of the kind that the graph takes."""
    return (PackedLane if model.packed else AppendedLane)(model, batch)


def split(lane: Lane) -> list[Lane]:
    """One lane a row, each with its row's cache: GroupQueryAttention appends several tokens to one row alone."""
    cache, lanes = lane.cache(), []
    for row in range(lane.batch):
        single = new_lane(lane.model, 1)
        single.load({name: held[row : row + 1] for name, held in cache.items()}, lane.length)
        lanes.append(single)
    return lanes
