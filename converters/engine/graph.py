"""What TensorRT's parser needs of the portable graph: tables as inputs, operators inlined or marked as plugins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from ...ops import DOMAIN, OPERATORS, VERSION
from ...runtime.bundle_files import table_fingerprint
from ...spec import ModelSpec

BYTE = "engine.values_of_a_byte"


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

    def fingerprint(self, bundle: Path) -> str:
        return table_fingerprint(bundle / self.file, self.offset, self.nbytes)


def take_tables_out(model: onnx.ModelProto) -> dict[str, Table]:
    """Turn value tables and shuffles into inputs, by name: data as long as the memory is large do not belong in it.

    TensorRT takes no uint8 there: packed tables are inputs of int8, of the same bytes.
    """
    tables = [tensor for tensor in model.graph.initializer if tensor.external_data and _is_table(tensor.name)]
    for tensor in tables:
        if tensor.data_type == TensorProto.UINT8:
            tensor.data_type = TensorProto.INT8
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
    _unsign_bytes(inlined)
    return inlined


def _unsign_bytes(model: onnx.ModelProto) -> None:
    """Bodies look a byte of a packed table up as 0 to 255; from an int8 input it comes as -128 to 127."""
    int8 = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.INT8}
    gathered = {node.output[0] for node in model.graph.node if node.op_type == "Gather" and node.input[0] in int8}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and node.input[0] in gathered and node.attribute[0].i == TensorProto.INT64:
            byte, signed = node.output[0], f"{node.output[0]}.signed"
            node.output[0] = signed
            nodes.append(helper.make_node("Mod", [signed, BYTE], [byte], name=byte))
    if len(nodes) > len(model.graph.node):
        model.graph.initializer.append(numpy_helper.from_array(np.array(256), BYTE))
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def mark_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every ai.ultramem node as a call of our plugin, which the parser looks up by these attributes."""
    del model.functions[:]
    for node in model.graph.node:
        if node.domain == DOMAIN:
            marks = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
            node.attribute.extend(helper.make_attribute(key, value) for key, value in marks.items())
    return model


def hand_tables_to_plugins(model: onnx.ModelProto, tables: Mapping[str, Table], bundle: Path) -> set[str]:
    """Turn tables that only plugins read into fields of theirs (plugins/tensorrt/resource.h); returns their names.

    `model` as `mark_plugins` leaves it. Such a table is no input of the engine: plugins find it in the model's folder.
    """
    ports = {operator.name: [port.name for port in operator.inputs] for operator in OPERATORS}
    handed: set[str] = set()
    for node in model.graph.node:
        names = dict(zip(node.input, ports[node.op_type] if node.domain == DOMAIN else [], strict=False))
        own = {name: port for name, port in names.items() if port in ("table", "scales") and name in tables}
        for name, port in own.items():
            node.attribute.append(helper.make_attribute(port, _field(tables[name], bundle)))
            node.input.remove(name)
        handed |= own.keys()
    handed -= {name for node in model.graph.node for name in node.input}
    for value in [value for value in model.graph.input if value.name in handed]:
        model.graph.input.remove(value)
    return handed


def _field(table: Table, bundle: Path) -> str:
    shape = "x".join(map(str, table.shape))
    return f"{table.dtype} {shape} {table.offset} {table.fingerprint(bundle)} {table.file}"


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
