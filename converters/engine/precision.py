"""Half precision in a strongly typed graph: which values are half, and the casts between them and the float32 ones.

Matrix products and the cache are half: they are most of the bytes. Norms, softmax, rotary angles, the residual stream
and the memory operators stay float32: a rounded key score would choose other slots.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, helper

HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
PRODUCTS = {"Gemm", "MatMul"}
# These move numbers and change none: they run in the type of what they move.
MOVES = {"Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def to_half(model: onnx.ModelProto, dtype: str) -> None:
    """Retype `model`, whose floating values are float32, in place; functions must not be inlined yet."""
    Retyping(model, HALVES[dtype]).run()


class Retyping:
    """One pass over the nodes in execution order; `self.half` names the floating values that are half by then."""

    def __init__(self, model: onnx.ModelProto, half: int) -> None:
        self.graph, self.to = model.graph, half
        self.floats = _float_values(model)
        self.weights = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.half: set[str] = set()
        self.nodes: list[NodeProto] = []
        self._casts: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        for value in (*self.graph.input, *self.graph.output):
            if value.name.startswith(("past_key_values.", "present.")):
                value.type.tensor_type.elem_type = self.to
        self.half |= {value.name for value in self.graph.input if value.type.tensor_type.elem_type == self.to}
        self.half &= self.floats
        for node in self.graph.node:
            self._retype(node)
        self._finish_outputs()
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        # They told the types of before.
        del self.graph.value_info[:]

    def _retype(self, node: NodeProto) -> None:
        halved = self._runs_in_half(node)
        for at, name in enumerate(node.input):
            if name in self.floats and (name in self.half) != halved:
                node.input[at] = self._cast(name, self.to if halved else TensorProto.FLOAT)
        self.nodes.append(node)
        if halved:
            self.half |= self.floats.intersection(node.output)

    def _runs_in_half(self, node: NodeProto) -> bool:
        if node.domain:
            return False
        if node.op_type in PRODUCTS:
            return True
        moved = [name for name in node.input if name in self.floats]
        # An embedding is a weight: half of it is read, and its rows are cast for the residual stream.
        embeds = node.op_type == "Gather" and node.input[0] in self.weights
        return node.op_type in MOVES and (embeds or any(name in self.half for name in moved))

    def _cast(self, name: str, to: int) -> str:
        if (name, to) not in self._casts:
            cast = f"{name}.{'float32' if to == TensorProto.FLOAT else 'half'}_cast"
            self.nodes.append(helper.make_node("Cast", [name], [cast], name=cast, to=to))
            self._casts[name, to] = cast
        return self._casts[name, to]

    def _finish_outputs(self) -> None:
        """An output has the type that it is declared with, whatever its node came to run in."""
        for output in self.graph.output:
            declared = output.type.tensor_type.elem_type
            if output.name in self.floats and (output.name in self.half) != (declared == self.to):
                inner = f"{output.name}.uncast"
                for node in self.nodes:
                    _rename(node, output.name, inner)
                self.nodes.append(helper.make_node("Cast", [inner], [output.name], name=inner, to=declared))


def _rename(node: NodeProto, old: str, new: str) -> None:
    for names in (node.input, node.output):
        for at, name in enumerate(names):
            if name == old:
                names[at] = new


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 values: inputs, weights, and what ONNX's own inference says of the rest."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = inferred.graph
    typed = [*graph.input, *graph.output, *graph.value_info]
    found = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
