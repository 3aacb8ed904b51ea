"""The ONNX schema that follows from a definition: ONNX's own checker takes what fits it and refuses the rest."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from onnx import defs, helper

from ultramem_deploy.ops import DOMAIN, OPERATORS, VERSION
from ultramem_deploy.ops.schema import BODY_OPSET, ONNX_TYPES, Operator

each = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Every schema known to the checker while a test runs."""
    for operator in OPERATORS:
        defs.register_schema(operator.onnx_schema())
    yield
    for operator in OPERATORS:
        defs.deregister_schema(operator.name, VERSION, DOMAIN)


def check(operator: Operator, types: dict[str, str], attributes: dict[str, int]) -> None:
    """ONNX's checker on one node, without the function body, so that only the schema says what is right."""
    ports = {port.name: (ONNX_TYPES[types[port.type]], port.shape) for port in (*operator.inputs, *operator.outputs)}
    values = {name: helper.make_tensor_value_info(name, *port) for name, port in ports.items()}
    inputs, outputs = ([port.name for port in side] for side in (operator.inputs, operator.outputs))
    node = helper.make_node(operator.name, inputs, outputs, domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], "one", [values[n] for n in inputs], [values[n] for n in outputs])
    opsets = [helper.make_opsetid("", BODY_OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    onnx.checker.check_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), full_check=True)


def allowed(operator: Operator) -> dict[str, str]:
    return {variable: types[0] for variable, types in operator.types.items()}


def required(operator: Operator) -> dict[str, int]:
    return {attribute.name: 1 for attribute in operator.attributes if attribute.default is None}


@each
def test_every_allowed_type_is_taken(operator: Operator) -> None:
    for variable, types in operator.types.items():
        for one in types:
            check(operator, allowed(operator) | {variable: one}, required(operator))


@each
def test_other_types_and_attributes_are_refused(operator: Operator) -> None:
    for variable, types in operator.types.items():
        for other in ONNX_TYPES.keys() - set(types):
            with pytest.raises(onnx.shape_inference.InferenceError, match="type"):
                check(operator, allowed(operator) | {variable: other}, required(operator))
    with pytest.raises(onnx.checker.ValidationError, match="Unrecognized attribute: colour"):
        check(operator, allowed(operator), required(operator) | {"colour": 1})
    for name in required(operator):
        with pytest.raises(onnx.checker.ValidationError, match=f"Required attribute '{name}' is missing"):
            check(operator, allowed(operator), {k: v for k, v in required(operator).items() if k != name})


@each
def test_the_schema_and_the_function_body_say_the_same(operator: Operator) -> None:
    schema, body = defs.get_schema(operator.name, VERSION, DOMAIN), operator.function_for(operator.encodings[-1])
    single = defs.OpSchema.FormalParameterOption.Single
    assert [port.name for port in schema.inputs] == list(body.input)
    assert [port.name for port in schema.inputs if port.option == single] == list(operator.function.input)
    assert [port.name for port in schema.outputs] == list(body.output)
    optional = {attribute.name for attribute in body.attribute_proto}
    assert {name for name, one in schema.attributes.items() if not one.required} == optional
    assert set(schema.attributes) - optional == set(body.attribute)
    assert schema.doc == operator.doc
