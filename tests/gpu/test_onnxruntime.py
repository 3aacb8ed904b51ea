"""The operators in ONNX Runtime's CUDA provider, by libultramem_ort_cuda.so."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings

from tests.ops import backends, cases, checks
from tools.check_tensorrt import built

SOME = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def runner() -> backends.Backend:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")
    library = built.ort_cuda_library()
    assert library is not None, "libultramem_ort_cuda.so is not built: `make plugins`"
    return on_cuda(library)


def on_cuda(library: Path) -> backends.Backend:
    """Every node must be placed on the CUDA provider: the CPU's fallback is off."""

    def run(case: cases.Case) -> backends.Outputs:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.register_custom_ops_library(str(library))
        model = backends.case_model(case).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CUDAExecutionProvider"])
        feeds = {name: backends.ort_value(tensor) for name, tensor in case.inputs.items()}
        return [output.numpy() for output in session.run_with_ort_values(None, feeds)]

    return run


@SOME
@given(case=cases.lookups())
def test_sparse_lookup(runner: backends.Backend, case: cases.Case) -> None:
    checks.check_sparse_lookup(case, {"cuda": runner})


@SOME
@given(case=cases.gates())
def test_sparse_gate(runner: backends.Backend, case: cases.Case) -> None:
    checks.check_sparse_gate(case, {"cuda": runner})


@SOME
@given(case=cases.retrievals())
def test_tucker_topk(runner: backends.Backend, case: cases.Case) -> None:
    checks.check_tucker_topk(case, {"cuda": runner})
