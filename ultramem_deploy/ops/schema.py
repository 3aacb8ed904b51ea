"""What an operator is, said once: the ONNX schema, the native registrations and the documentation follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
import onnx.parser

DOMAIN = "ai.ultramem"
VERSION = 1
BODY_OPSET = 18

ONNX_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "int64": onnx.TensorProto.INT64,
}


@dataclass(frozen=True)
class Port:
    """One input or output: its name, symbolic shape and type variable (a key of `Operator.types`)."""

    name: str
    shape: tuple[str, ...]
    type: str
    doc: str


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
    the formula that every kernel is checked against.
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
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {BODY_OPSET}]>'
        function = onnx.parser.parse_function(f"{header}\n{self.signature}\n{self.body}")
        function.doc_string = self.doc
        return function

    @property
    def signature(self) -> str:
        """`Name <attributes> (inputs) => (outputs)`, as ONNX's parser reads it."""
        declared = [f"{a.name}: int = {a.default}" if a.default is not None else a.name for a in self.attributes]
        attributes = f" <{', '.join(declared)}>" if declared else ""
        inputs = ", ".join(p.name for p in self.inputs)
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
            inputs=[schema.FormalParameter(p.name, p.type, p.doc) for p in self.inputs],
            outputs=[schema.FormalParameter(p.name, p.type, p.doc) for p in self.outputs],
            type_constraints=constraints,
            attributes=[_schema_attribute(a) for a in self.attributes],
        )


def _onnx_type_name(dtype: str) -> str:
    return {"float32": "float"}.get(dtype, dtype)


def _schema_attribute(attribute: Attribute) -> onnx.defs.OpSchema.Attribute:
    if attribute.default is None:
        return onnx.defs.OpSchema.Attribute(
            attribute.name, onnx.defs.OpSchema.AttrType.INT, attribute.doc, required=True
        )
    default = onnx.helper.make_attribute(attribute.name, attribute.default)
    return onnx.defs.OpSchema.Attribute(attribute.name, default, attribute.doc)
