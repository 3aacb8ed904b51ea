"""An execution context with TensorRT's methods that runs the engine's own ONNX graph in ONNX Runtime, by address.

It stands where a GPU would: the runner under test hands it shapes and addresses, and it reads and writes them.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime

from ultramem_deploy.converters.engine.graph import inline_operators, take_tables_out

NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Engine:
    """A graph whose tables are inputs, as an engine; `profiles` as in the manifest."""

    def __init__(self, folder: Path, model: onnx.ModelProto, profiles: list[dict[str, Any]]) -> None:
        take_tables_out(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        serialized = cast(Any, inline_operators(model)).SerializeToString()
        self.session = onnxruntime.InferenceSession(serialized, options)
        self.profiles = profiles
        self.used: list[str] = []

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inputs = {value.name: value for value in engine.session.get_inputs()}
        self.outputs = {value.name: value for value in engine.session.get_outputs()}
        self.shapes = {name: value.shape for name, value in self.inputs.items()}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = self.engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        limits = self.profile["shapes"][name]
        if any(not low <= size <= high for low, size, high in zip(limits["min"], shape, limits["max"], strict=True)):
            return False
        self.shapes[name] = list(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        batch, tokens = self.shapes["input_ids"]
        sizes = {
            "batch_size": batch,
            "sequence_length": tokens,
            "tokens": batch * tokens,
            "total_sequence_length": self.shapes["attention_mask"][1],
        }
        return [sizes.get(size, size) for size in self.outputs[name].shape]

    def execute_async_v3(self, stream: int) -> bool:
        self.engine.used.append(self.profile["name"])
        feeds = {name: self._array(name, value.type, self.shapes[name]) for name, value in self.inputs.items()}
        for name, result in zip(self.outputs, self.engine.session.run(None, feeds), strict=True):
            self._array(name, self.outputs[name].type, self.get_tensor_shape(name))[...] = result
        return True

    def _array(self, name: str, kind: str, shape: list[int]) -> np.ndarray:
        dtype = np.dtype(NUMPY[kind])
        count = int(np.prod(shape)) * dtype.itemsize
        buffer = (ctypes.c_byte * count).from_address(self.addresses[name])
        return np.frombuffer(buffer, dtype).reshape(shape)
