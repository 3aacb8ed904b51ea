"""What TensorRT's parser needs of the portable graph: tables as inputs, operators inlined or marked as plugins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, inliner

from ...ops import DOMAIN, VERSION
from ...spec import ModelSpec


@dataclass(frozen=True)
class Table:
    """A table that has become an input: where its bytes are, relative to the bundle."""

    name: str
    file: str
    offset: int
    nbytes: int
    data_type: int
    shape: tuple[int, ...]

    @property
    def tensor(self) -> str:
        """The checkpoint tensor behind a view such as tables.t.values.as_8x16."""
        return self.name.partition(".as_")[0]

    @property
    def dtype(self) -> str:
        return str(helper.tensor_dtype_to_np_dtype(self.data_type))


def take_tables_out(model: onnx.ModelProto) -> dict[str, Table]:
    """Turn value tables and shuffles into inputs, by name: data as long as the memory is large do not belong in it."""
    tables = [tensor for tensor in model.graph.initializer if tensor.external_data and _is_table(tensor.name)]
    for tensor in tables:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    return {tensor.name: _table(tensor) for tensor in tables}


def show_memory(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Make every memory layer's choice (int64 [T, K]) and output (float32 [T, d]) outputs of the model."""
    for index, layer in enumerate(spec.memory):
        for part, kind, width in (
            ("indices", TensorProto.INT64, layer.taken),
            ("output", TensorProto.FLOAT, spec.decoder.hidden_size),
        ):
            model.graph.output.append(helper.make_tensor_value_info(f"memory.{index}.{part}", kind, ["tokens", width]))


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, those of ai.ultramem by their own names, in alphabetical order."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def inline_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every ai.ultramem node replaced by its body."""
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def mark_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every ai.ultramem node as a call of our plugin, which the parser looks up by these attributes."""
    del model.functions[:]
    for node in model.graph.node:
        if node.domain == DOMAIN:
            marks = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
            node.attribute.extend(helper.make_attribute(key, value) for key, value in marks.items())
    return model


def _is_table(name: str) -> bool:
    return name.startswith("tables.") or name.endswith(".shuffle")


def _table(tensor: TensorProto) -> Table:
    where = {item.key: item.value for item in tensor.external_data}
    return Table(
        tensor.name,
        where["location"],
        int(where["offset"]),
        int(where["length"]),
        tensor.data_type,
        tuple(tensor.dims),
    )
