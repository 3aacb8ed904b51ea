"""The half-precision graph: strongly typed, close to the float32 one, and float32 where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from tests import builders
from tests.converters.onnx.cases import MODELS
from ultramem_deploy.converters.engine.precision import to_half
from ultramem_deploy.converters.onnx import export_onnx

IDS = np.random.default_rng(5).integers(0, 61, (2, 7))
CASES = ["memory-v1", "memory-v2", "memory-memory_plus", "memory-expanded", "decoder-tied", "decoder-window"]


def portable(tmp_path: Path, case: str, stored: str = "float32") -> tuple[Path, onnx.ModelProto]:
    export_onnx(
        builders.write_checkpoint(tmp_path / "c", MODELS[case], dtype=stored), tmp_path / "p", target="portable"
    )
    return tmp_path / "p", onnx.load(tmp_path / "p" / "model.onnx", load_external_data=False)


def logits(folder: Path, model: onnx.ModelProto, half: Any) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(cast(Any, model).SerializeToString(), options)
    feeds: dict[str, np.ndarray] = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((2, value.shape[1], 0, value.shape[3]), half)
    return np.asarray(session.run(["logits"], feeds)[0])


def inferred(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("case", CASES)
def test_float16_is_close_to_float32(tmp_path: Path, case: str) -> None:
    """Tokens whose selection did not move agree to a few float16 roundings of values near 1 (2^-11 each)."""
    folder, model = portable(tmp_path, case)
    expected = logits(folder, model, np.float32)
    to_half(model, "float16")
    error = np.abs(logits(folder, model, np.float16) - expected).max(-1)
    assert np.quantile(error, 0.7) < 2e-2 * np.abs(expected).max() and error.max() > 0


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype, half", [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)])
@pytest.mark.parametrize("case", CASES)
def test_types_agree_at_every_node(tmp_path: Path, case: str, dtype: str, half: int, stored: str) -> None:
    _, model = portable(tmp_path, case, stored)
    to_half(model, dtype)
    types = inferred(model)
    for node in model.graph.node:
        floats = {types[name] for name in node.input if types[name] in (TensorProto.FLOAT, half)}
        if node.op_type in ("Gemm", "MatMul"):
            assert floats == {half}
        elif node.op_type in ("Add", "Mul", "Softmax", "Pow", "ReduceMean", "Div", "TuckerTopK"):
            assert half not in floats
    assert types["present.0.key"] == types["past_key_values.0.key"] == half
    assert types["logits"] == TensorProto.FLOAT
