"""A small graph builder: readable unique names, constants shared by content, weights that stay in their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ...checkpoint import TensorInfo
from .weights import external_tensor


class Graph:
    """Nodes in execution order. Values are named by strings; `op` returns the name of a node's output."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self._tensors = dict(tensors)
        self._scopes: list[str] = []
        self._names: set[str] = set()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._float_weights: dict[str, str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names made inside."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def op(self, kind: str, *inputs: str, out: str | None = None, label: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; `out` names the output exactly, `label` is its name within the scope."""
        return self.ops(kind, 1, *inputs, out=[out] if out else None, label=label, **attributes)[0]

    def ops(
        self,
        kind: str,
        count: int,
        *inputs: str,
        out: Sequence[str] | None = None,
        label: str | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Add a node with `count` outputs; `kind` may carry a domain, as in "com.microsoft::FusedMatMul"."""
        domain, _, op_type = kind.rpartition("::")
        name = self._unique(label or op_type)
        outputs = list(out) if out else [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
        self._names.update(outputs)
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """An inline initializer; equal constants are one."""
        array = np.ascontiguousarray(value, dtype=dtype).reshape(np.shape(value))
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            text = "_".join(str(v) for v in array.flatten()[:4]).replace("-", "minus")
            name = self._reserve(f"constant.{dtype}.{'x'.join(map(str, array.shape)) or 'scalar'}.{text}")
            self.initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def stored(self, name: str, shape: Sequence[int] | None = None) -> str:
        """A checkpoint tensor in its stored dtype, its bytes seen as `shape`."""
        info = self._tensors[name]
        wanted = tuple(shape or info.shape)
        value = name if wanted == info.shape else f"{name}.as_{'x'.join(map(str, wanted))}"
        if value not in self.initializers:
            self.initializers[value] = external_tensor(info, value, wanted)
            self._names.add(value)
        return value

    def weight(self, name: str, shape: Sequence[int] | None = None) -> str:
        """A checkpoint tensor as float32: what is stored in half precision is cast in the graph."""
        value = self.stored(name, shape)
        if self._tensors[name].dtype == "float32":
            return value
        if value not in self._float_weights:
            cast = f"{value}.float32"
            self.nodes.append(helper.make_node("Cast", [value], [cast], name=cast, to=TensorProto.FLOAT))
            self._names.add(cast)
            self._float_weights[value] = cast
        return self._float_weights[value]

    def holds(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The stored shape of a checkpoint tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """The stored dtype of a checkpoint tensor."""
        return self._tensors[name].dtype

    def add_input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        self._names.add(name)
        return name

    def add_output(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to fixed sizes; 0 copies the input's, -1 is what remains."""
        return self.op("Reshape", x, self.constant(shape))

    def size(self, x: str, axis: int) -> str:
        """One axis of a shape, int64 [1]."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def cast(self, x: str, to: int) -> str:
        return self.op("Cast", x, to=to)

    def domains(self) -> set[str]:
        """Every operator domain in use."""
        return {node.domain for node in self.nodes}

    def _unique(self, label: str) -> str:
        return self._reserve(".".join((*self._scopes, label)))

    def _reserve(self, name: str) -> str:
        free, attempt = name, 1
        while free in self._names:
            attempt += 1
            free = f"{name}_{attempt}"
        self._names.add(free)
        return free
