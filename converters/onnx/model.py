"""A ModelProto from a model description and the tensors that it points to."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from ...checkpoint import TensorInfo
from ...checkpoint.provenance import tool_version
from ...errors import InputError
from ...ops import DOMAIN, OPERATORS, VERSION
from ...ops.encoding import ENCODINGS
from ...runtime.ort_model import description_fingerprint
from ...spec import ModelSpec
from .decoder import DecoderGraph
from .dialect import DIALECTS, MICROSOFT
from .graph import Graph
from .weights import rope_positions

TARGETS = tuple(DIALECTS)
OPSET = 18
IR_VERSION = 9


def build_model(spec: ModelSpec, tensors: Mapping[str, TensorInfo], target: str = "ort") -> onnx.ModelProto:
    """The graph of `spec`; `tensors` are the checkpoint's and those of `weights.derived_tensors`, by name.

    target: "ort" (com.microsoft operators, padding on the right) or "portable" (standard operators of opset 18).
    Raises InputError for another target.
    """
    if target not in DIALECTS:
        raise InputError(f"target: expected one of {', '.join(TARGETS)}, found {target!r}")
    graph = Graph(tensors)
    decoder = DecoderGraph(DIALECTS[target](graph, spec.decoder.hidden_size), spec)
    decoder.build()
    proto = helper.make_graph(
        graph.nodes, "ultramem", graph.inputs, graph.outputs, initializer=list(graph.initializers.values())
    )
    model = helper.make_model(
        proto,
        functions=_functions(graph),
        opset_imports=_opsets(graph),
        ir_version=IR_VERSION,
        producer_name="ultramem-deploy",
        producer_version=tool_version(),
    )
    helper.set_model_props(model, _metadata(spec, target, decoder.packs_cache))
    return model


def _functions(graph: Graph) -> list[onnx.FunctionProto]:
    """The bodies of the operators in use, for the encoding of their tables. InputError where one needs two bodies."""
    used: dict[str, set[int]] = {}
    for node in graph.nodes:
        if node.domain == DOMAIN:
            encoding = [a.i for a in node.attribute if a.name == "encoding"]
            used.setdefault(node.op_type, set()).update(encoding or [0])
    mixed = [name for name, encodings in used.items() if len(encodings) > 1]
    if mixed:
        raise InputError(f"export: the tables that {mixed[0]} reads are stored in different ways: quantize all or none")
    return [op.function_for(ENCODINGS[min(used[op.name])]) for op in OPERATORS if op.name in used]


def _opsets(graph: Graph) -> list[onnx.OperatorSetIdProto]:
    versions = {"": OPSET, DOMAIN: VERSION, MICROSOFT: 1}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items() if domain in graph.domains()]


def _metadata(spec: ModelSpec, target: str, packs_cache: bool) -> dict[str, str]:
    return {
        "tool": f"ultramem-deploy {tool_version()}",
        "target": target,
        "description": description_fingerprint(spec),
        "cache": "packed" if packs_cache else "appended",
        "positions": str(rope_positions(spec.decoder) if packs_cache else 0),
    }
