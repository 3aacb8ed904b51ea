"""Exported models compute what the PyTorch model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests import builders as b
from tests.converters.onnx.cases import EXPERTS, MODELS
from tests.converters.onnx.conftest import Exported
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.base import Trace
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.runtime.plugins import ort_library
from ultramem_deploy.runtime.torch_runner import TorchRunner
from ultramem_deploy.spec import ModelSpec

# Two layers of float32 sums of at most 48 terms, of magnitude 4: other orders of summation differ by a few 1e-6 (seen:
# 1e-5 behind memory outputs of magnitude 30).
TOLERANCE = 1e-4
TARGETS = ("ort", "portable")
IDS = np.random.default_rng(7).integers(0, 61, (2, 11))


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The native library; a missing one fails with the command that builds it."""
    return ort_library()


def check(expected: Trace, found: Trace) -> None:
    np.testing.assert_allclose(found.logits, expected.logits, atol=TOLERANCE, rtol=0)
    assert len(found.layers) == len(expected.layers)
    for one, other in zip(expected.layers, found.layers, strict=True):
        np.testing.assert_array_equal(np.sort(other.indices), np.sort(one.indices))
        scale = max(1.0, float(np.abs(one.output).max()))
        np.testing.assert_allclose(other.output, one.output, atol=TOLERANCE * scale, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", MODELS)
def test_bodies(case: str, target: str, exported: Exported) -> None:
    source, bundle = exported(case, target)
    check(TorchRunner(source).trace(IDS), OrtRunner(bundle, kernels=False).trace(IDS))


@pytest.mark.parametrize("case", EXPERTS)
def test_experts(case: str, tmp_path: Path) -> None:
    source = b.write_checkpoint(tmp_path / "source", ModelSpec(EXPERTS[case]))
    receipt = export_onnx(source, tmp_path / "out")
    assert receipt["weights"]
    check(TorchRunner(source).trace(IDS), OrtRunner(tmp_path / "out").trace(IDS))


def test_experts_need_onnx_runtime(tmp_path: Path) -> None:
    source = b.write_checkpoint(tmp_path / "source", ModelSpec(EXPERTS["softmax"]))
    with pytest.raises(InputError, match="only ONNX Runtime's MoE runs a mixture of experts"):
        export_onnx(source, tmp_path / "out", target="portable")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [case for case in MODELS if case.startswith("memory-")])
def test_kernels(case: str, target: str, exported: Exported, kernels: Path) -> None:
    source, bundle = exported(case, target)
    check(TorchRunner(source).trace(IDS), OrtRunner(bundle).trace(IDS))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", ["memory-v1", "memory-v2", "memory-memory_plus", "memory-expanded", "decoder-tied"])
def test_half_precision_storage(case: str, target: str, dtype: str, exported: Exported, kernels: Path) -> None:
    """Weights stored in half precision are exact in float32, so the reference is the same model in float32."""
    source, bundle = exported(case, target, dtype)
    expected = TorchRunner(source, dtype="float32").trace(IDS)
    for with_kernels in (False, True):
        check(expected, OrtRunner(bundle, kernels=with_kernels).trace(IDS))


@pytest.mark.parametrize("case", ["memory-v1", "memory-v2_swiglu", "memory-memory_plus", "decoder-window"])
def test_reference_evaluator(case: str, exported: Exported) -> None:
    """The portable graph needs nothing but ONNX itself. Copied: onnx's own loader refuses hard links."""
    source, bundle = exported(case, "portable", copy=True)
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(str(bundle / "model.onnx"), full_check=True)
    decoder = MODELS[case].decoder
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    empty = np.zeros((len(IDS), decoder.num_kv_heads, 0, decoder.head_dim), np.float32)
    feeds |= {i.name: empty for i in model.graph.input if i.name.startswith("past")}
    logits = ReferenceEvaluator(model).run(["logits"], feeds)[0]
    np.testing.assert_allclose(logits, TorchRunner(source).logits(IDS), atol=TOLERANCE, rtol=0)


def test_portable_uses_standard_operators_alone(exported: Exported) -> None:
    for case in MODELS:
        model = onnx.load(exported(case, "portable")[1] / "model.onnx", load_external_data=False)
        assert {node.domain for node in model.graph.node} <= {"", "ai.ultramem"}
        assert {o.domain: o.version for o in model.opset_import}[""] == 18


def test_names_for_tracing(exported: Exported) -> None:
    for target in TARGETS:
        model = onnx.load(exported("memory-v2", target)[1] / "model.onnx", load_external_data=False)
        made = {name for node in model.graph.node for name in node.output}
        wanted = {f"memory.{i}.{part}" for i in (0, 1) for part in ("scores", "indices", "output")}
        assert wanted <= made
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names) and all(names)
