"""What an operator is, said once: the ONNX schema, the native registrations and the documentation follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
import onnx.parser

from .encoding import ENCODINGS, codebook, values_body

DOMAIN = "ai.ultramem"
VERSION = 1
BODY_OPSET = 18
VALUES = "VALUES"

ONNX_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "int64": onnx.TensorProto.INT64,
    "int8": onnx.TensorProto.INT8,
    "uint8": onnx.TensorProto.UINT8,
}


@dataclass(frozen=True)
class Port:
    """One input or output: its name, symbolic shape and type variable (a key of `Operator.types`).

    Optional ports come last.
    """

    name: str
    shape: tuple[str, ...]
    type: str
    doc: str
    optional: bool = False


@dataclass(frozen=True)
class Attribute:
    """An int64 attribute. `default` None means required; `choices` names the values of an enumeration."""

    name: str
    doc: str
    default: int | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    """An operator of the domain `ai.ultramem` (spec §5).

    `body` is the model-local function in ONNX's textual syntax: what runs where no kernel of ours is registered, and
    the formula that every kernel is checked against. Where it says `VALUES`, the rows of the table are gathered and
    decoded, in the way of the table's encoding (see encoding.py).
    """

    name: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    types: Mapping[str, tuple[str, ...]]
    body: str
    attributes: tuple[Attribute, ...] = field(default=())

    @cached_property
    def function(self) -> onnx.FunctionProto:
        """The function body as a proto, ready to be added to a model that uses the operator."""
        return self.function_for("float")

    @property
    def encodings(self) -> tuple[str, ...]:
        """How the operator's table may be stored; an operator without a table knows "float" alone."""
        return ENCODINGS if VALUES in self.body else ENCODINGS[:1]

    def function_for(self, encoding: str, overload: str = "") -> onnx.FunctionProto:
        """The body for a table of this encoding: without optional inputs for "float", else with all of them.

        A model whose nodes of this operator differ in encoding carries one body each, told apart by `overload` (of
        node and function, IR version 10); where they agree, leave it empty.
        """
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {BODY_OPSET}]>'
        body = self.body.replace(VALUES, values_body(encoding).strip())
        function = onnx.parser.parse_function(f"{header}\n{self.signature(encoding)}\n{body}")
        if (numbers := codebook(encoding)) is not None:
            tensor = onnx.numpy_helper.from_array(numbers, "codebook")
            function.node.insert(0, onnx.helper.make_node("Constant", [], ["codebook"], value=tensor))
        function.doc_string = self.doc
        if overload:
            function.overload = overload
        return function

    def signature(self, encoding: str = "float") -> str:
        """`Name <attributes> (inputs) => (outputs)`, as ONNX's parser reads it."""
        declared = [f"{a.name}: int = {a.default}" if a.default is not None else a.name for a in self.attributes]
        attributes = f" <{', '.join(declared)}>" if declared else ""
        inputs = ", ".join(p.name for p in self.inputs if encoding != "float" or not p.optional)
        outputs = ", ".join(p.name for p in self.outputs)
        return f"{self.name}{attributes} ({inputs}) => ({outputs})"

    def onnx_schema(self) -> onnx.defs.OpSchema:
        """The operator's schema, for `onnx.defs.register_schema` and for the checker."""
        schema = onnx.defs.OpSchema
        constraints = [
            (variable, [f"tensor({_onnx_type_name(t)})" for t in allowed], "")
            for variable, allowed in self.types.items()
        ]
        return schema(
            self.name,
            DOMAIN,
            VERSION,
            doc=self.doc,
            inputs=[_parameter(p) for p in self.inputs],
            outputs=[_parameter(p) for p in self.outputs],
            type_constraints=constraints,
            attributes=[_schema_attribute(a) for a in self.attributes],
        )


def _parameter(port: Port) -> onnx.defs.OpSchema.FormalParameter:
    option = onnx.defs.OpSchema.FormalParameterOption
    kind = option.Optional if port.optional else option.Single
    return onnx.defs.OpSchema.FormalParameter(port.name, port.type, port.doc, param_option=kind)


def _onnx_type_name(dtype: str) -> str:
    return {"float32": "float"}.get(dtype, dtype)


def _schema_attribute(attribute: Attribute) -> onnx.defs.OpSchema.Attribute:
    if attribute.default is None:
        return onnx.defs.OpSchema.Attribute(
            attribute.name, onnx.defs.OpSchema.AttrType.INT, attribute.doc, required=True
        )
    default = onnx.helper.make_attribute(attribute.name, attribute.default)
    return onnx.defs.OpSchema.Attribute(attribute.name, default, attribute.doc)
