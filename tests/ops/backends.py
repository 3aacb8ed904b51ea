"""Every way to run an operator: PyTorch, the ONNX reference evaluator, ONNX Runtime by body and by kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ultramem_deploy.ops import DOMAIN, OPERATORS, VERSION, Operator, sparse_gate, sparse_lookup, tucker_topk

from .cases import ENCODINGS, Case

Outputs = list[np.ndarray]
Backend = Callable[[Case], Outputs]

ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.float8_e4m3fn: TensorProto.UINT8,  # by its bits
}
TORCH_OPS = {
    "TuckerTopK": (tucker_topk.tucker_topk_op, tucker_topk.tucker_topk),
    "SparseGate": (sparse_gate.sparse_gate_op, sparse_gate.sparse_gate),
    "SparseLookup": (sparse_lookup.sparse_lookup_op, sparse_lookup.sparse_lookup),
}


def model(
    operator: Operator,
    elements: dict[str, int],
    attributes: dict[str, object],
    initializers: tuple[onnx.TensorProto, ...] = (),
    body: bool = True,
) -> onnx.ModelProto:
    """One node of `operator` between graph inputs of these element types; every dimension is free.

    An optional input that `elements` lacks is left out.
    """
    present = [port for port in operator.inputs if port.name in elements]
    free = {port.name: [f"{port.name}_{d}" for d in range(len(port.shape))] for port in present}
    output_element = next(elements[port.name] for port in present[::-1] if port.type == "T")
    outputs = [
        helper.make_tensor_value_info(
            p.name,
            TensorProto.INT64 if p.type == "I" else output_element,
            [f"{p.name}_{d}" for d in range(len(p.shape))],
        )
        for p in operator.outputs
    ]
    given = {tensor.name for tensor in initializers}
    inputs = [helper.make_tensor_value_info(n, e, free[n]) for n, e in elements.items() if n not in given]
    names = [p.name for p in present], [p.name for p in operator.outputs]
    node = helper.make_node(operator.name, *names, domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], "one_node", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    encoding = ENCODINGS[int(str(attributes.get("encoding", 0)))]
    functions = [operator.function_for(encoding)] if body else []
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)


@cache
def _model(
    name: str, elements: tuple[tuple[str, int], ...], attributes: tuple[tuple[str, int], ...]
) -> onnx.ModelProto:
    operator = next(o for o in OPERATORS if o.name == name)
    return model(operator, dict(elements), dict(attributes))


def case_model(case: Case) -> onnx.ModelProto:
    """The one-node model that a case runs on."""
    elements = tuple((n, ELEMENTS[x.dtype]) for n, x in case.inputs.items())
    return _model(case.operator.name, elements, tuple(case.attributes.items()))


def torch_operator(case: Case) -> Outputs:
    """The registered PyTorch operator."""
    return _torch(TORCH_OPS[case.operator.name][0], case)


def torch_native(case: Case) -> Outputs:
    """PyTorch by the native kernel."""
    return _torch(TORCH_OPS[case.operator.name][1], case)


def _torch(function: Callable[..., object], case: Case) -> Outputs:
    attributes = {name: value for name, value in case.attributes.items() if name != "encoding"}  # the dtype says it
    result = function(**case.inputs, **attributes)
    results = result if isinstance(result, tuple) else (result,)
    return [x.cpu().numpy() for x in results]


def onnx_reference(case: Case) -> Outputs:
    """The function body in ONNX's own evaluator."""
    feeds = {name: _numpy(x) for name, x in case.inputs.items()}
    return [np.asarray(x) for x in ReferenceEvaluator(case_model(case)).run(None, feeds)]


def _numpy(x: torch.Tensor) -> np.ndarray:
    if x.dtype == torch.float8_e4m3fn:
        return x.view(torch.uint8).numpy()
    return x.float().numpy().astype(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def session(proto: onnx.ModelProto, library: Path | None, threads: int = 2) -> onnxruntime.InferenceSession:
    """A session on the CPU; with `library` the kernels run, without it the bodies."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runtime(library: Path | None) -> Backend:
    """ONNX Runtime with or without the library; sessions are kept, one for each type and attribute combination."""
    sessions: dict[int, onnxruntime.InferenceSession] = {}

    def run(case: Case) -> Outputs:
        proto = case_model(case)
        if id(proto) not in sessions:
            sessions[id(proto)] = session(proto, library)
        feeds = {name: ort_value(x) for name, x in case.inputs.items()}
        return [x.numpy() for x in sessions[id(proto)].run_with_ort_values(None, feeds)]

    return run


def ort_value(x: torch.Tensor) -> onnxruntime.OrtValue:
    """The tensor for ONNX Runtime; NumPy has no bfloat16, so its bits travel as int16."""
    if x.dtype != torch.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(_numpy(x))
    bits = x.contiguous().view(torch.int16).numpy()
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
