"""Runs model.onnx for Triton's Python backend; `bundle --triton` copies this file into the repository as model.py.

For servers without the onnxruntime backend. The server's Python needs onnxruntime and the NumPy that its stub was built
for, nothing else: PyTriton's takes arrays of NumPy 2 for empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as server

ort: Any = onnxruntime  # it exports its names without saying so
LIBRARY = "libultramem_ort.so"


class TritonPythonModel:
    """Called by the server: one object an instance, requests a batch at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph that lies beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = ort.SessionOptions()
        if (folder / LIBRARY).exists():
            options.register_custom_ops_library(str(folder / LIBRARY))
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response a request. Requests of one shape are run as one batch."""
        feeds = [self._feeds(request) for request in requests]
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for number, feed in enumerate(feeds):
            groups.setdefault(tuple(feed[name].shape[1:] for name in self._inputs), []).append(number)
        responses: list[Any] = [None] * len(requests)
        for numbers in groups.values():
            for number, response in zip(numbers, self._run([feeds[number] for number in numbers]), strict=True):
                responses[number] = response
        return responses

    def _feeds(self, request: Any) -> dict[str, np.ndarray[Any, Any]]:
        return {name: server.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _run(self, feeds: list[dict[str, np.ndarray[Any, Any]]]) -> list[Any]:
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])[:-1]
        try:
            batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
            found = [np.split(np.asarray(value), ends) for value in self._session.run(self._outputs, batch)]
        except Exception as error:  # ONNX Runtime has a class of its own for each of its codes
            return [server.InferenceResponse(error=server.TritonError(str(error))) for _ in feeds]
        tensors = [
            [server.Tensor(name, values[number]) for name, values in zip(self._outputs, found, strict=True)]
            for number in range(len(feeds))
        ]
        return [server.InferenceResponse(output_tensors=one) for one in tensors]
