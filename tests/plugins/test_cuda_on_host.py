"""The CUDA kernels' own sources, compiled for the host and run with one of its threads for each of a block's.

The numbers are checked as those of every other way to run an operator are; ThreadSanitizer watches for missing
barriers. What only a GPU can show (its own arithmetic, memory spaces, speed) is in tests/gpu.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import gpu_decode, gpu_operators
from tests.ops import backends, cases, checks, cuda_backend
from tools.check_tensorrt import built
from tools.cuda_library import CudaLibrary

CHECKOUT = Path(__file__).resolve().parents[2]
KERNELS = CHECKOUT / "plugins" / "kernels" / "cuda"
SHIM = CHECKOUT / "tests" / "plugins" / "cuda_on_host"
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COMPILER = os.environ.get("CXX") or shutil.which("c++") or "g++"
LANES = st.sampled_from((0, 8, 16, 32, 64, 128))


def compile_for_host(target: Path, *flags: str | Path) -> None:
    """The three kernels and what `flags` adds."""
    folders = [f"-I{folder}" for folder in (CHECKOUT / "plugins", KERNELS, SHIM)]
    command = [COMPILER, "-std=c++17", "-O1", "-pthread", "-Wno-unknown-pragmas", *folders, "-x", "c++"]
    result = subprocess.run(
        [*command, *sorted(KERNELS.glob("*.cu")), *flags, "-o", target], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    target = tmp_path_factory.mktemp("cuda_on_host") / "kernels.so"
    compile_for_host(target, "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all")
    return CudaLibrary(target)


@FEW
@given(case=cases.lookups(), lanes=LANES)
def test_sparse_lookup(host: CudaLibrary, case: cases.Case, lanes: int) -> None:
    checks.check_sparse_lookup(case, {"host": cuda_backend.backend(host, "cpu", lanes)})


@FEW
@given(case=cases.gates())
def test_sparse_gate(host: CudaLibrary, case: cases.Case) -> None:
    checks.check_sparse_gate(case, {"host": cuda_backend.backend(host, "cpu")})


@settings(FEW, max_examples=5)
@given(case=cases.retrievals())
def test_tucker_topk(host: CudaLibrary, case: cases.Case) -> None:
    checks.check_tucker_topk(case, {"host": cuda_backend.backend(host, "cpu")})


@pytest.mark.parametrize("encoding", range(4))
def test_wide_rows_and_many_slots(host: CudaLibrary, encoding: int) -> None:
    """16-byte loads over several chunks of columns, and more slots than a block of threads takes at once."""
    tokens, slots, cores, blocks, rows, width = 2, 150, 2, 2, 9, 256
    table, scores = cases.normal(encoding, (rows, width), (tokens, slots, cores))
    addresses = torch.from_numpy(np.random.default_rng(encoding).integers(0, rows * blocks, (tokens, slots)))
    stored = cases.quantised(table, cases.ENCODINGS[encoding])
    inputs = {"table": stored["table"], "addresses": addresses, "scores": scores} | stored
    case = cases.Case(cases.sparse_lookup.OPERATOR, inputs, {"blocks": blocks, "encoding": encoding})
    for lanes in (0, 8, 32):
        checks.check_sparse_lookup(case, {f"{lanes} lanes": cuda_backend.backend(host, "cpu", lanes)})


def test_bfloat16_activations(host: CudaLibrary) -> None:
    """Rounded once at the end: the float32 result, to half a unit in the last place of bfloat16."""
    table, scores = cases.normal(3, (7, 16), (2, 5, 2))
    addresses = torch.from_numpy(np.random.default_rng(3).integers(0, 7, (2, 5)))
    inputs = {"table": table, "addresses": addresses, "scores": scores.bfloat16()}
    output = host.sparse_lookup(inputs, blocks=1)
    exact = host.sparse_lookup({**inputs, "scores": scores.bfloat16().float()}, blocks=1)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("address", [-1, 14, 2**40])
def test_a_bad_address_makes_its_token_nan(host: CudaLibrary, address: int) -> None:
    table, scores = cases.normal(4, (7, 16), (3, 5, 1))
    addresses = torch.zeros(3, 5, dtype=torch.int64)
    addresses[1, 2] = address
    inputs = {"table": table, "addresses": addresses, "scores": scores}
    output = host.sparse_lookup(inputs, blocks=2)
    assert output[1].isnan().all() and not output[[0, 2]].isnan().any()
    gate = host.sparse_gate({"table": table, "addresses": addresses, "x": torch.ones(3, 16)}, activation=0)
    bad = address < 0  # of a gate the row is the address modulo N
    assert bool(gate[1, 2].isnan()) == bad and int(gate.isnan().sum()) == int(bad)


def test_a_retrieval_too_large_for_shared_memory(host: CudaLibrary) -> None:
    """k = 2000 puts the scratch into the workspace; the answer is that of a float64 selection."""
    keys, k = 2100, 2000
    row, col = cases.normal(5, (1, 1, 1, keys), (1, 1, 1, keys))
    ones = torch.ones(1, 1)
    case = {"row_scores": row, "col_scores": col, "u": ones, "v": ones, "core": ones[None, None]}
    scores, indices = host.tucker_topk(case, k)
    grid = row.double().flatten()[:, None] * col.double().flatten()[None]
    kept = torch.zeros(keys, keys, dtype=torch.bool)
    rows, cols = (side.flatten().topk(k).indices for side in (row, col))
    kept[rows[:, None], cols[None]] = True
    expected = grid.masked_fill(~kept, -torch.inf).flatten().topk(k).values
    torch.testing.assert_close(scores.flatten().double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grid.flatten()[indices.flatten()], expected, rtol=1e-6, atol=1e-6)


def test_refusals(host: CudaLibrary) -> None:
    table, scores = cases.normal(6, (7, 16), (1, 2, 1))
    inputs = {"table": table, "addresses": torch.zeros(1, 2, dtype=torch.int64), "scores": scores}
    for wrong, options in (
        (inputs, {"blocks": 0}),
        (inputs, {"blocks": 1, "lanes": 24}),
        ({**inputs, "scores": cases.normal(6, (1, 2, 3))[0]}, {"blocks": 1}),
    ):
        with pytest.raises(RuntimeError, match="sparse_lookup: code 3"):
            host.sparse_lookup(wrong, **options)


def kernels_archive() -> Path:
    """The CPU's kernels as a static library: of an editable install, which is always current, or of `make plugins`."""
    builds = (*CHECKOUT.glob("build/py3-*"), built.BUILD)
    found = next((f for build in builds if (f := build / "plugins/kernels/libultramem_kernels.a").is_file()), None)
    if found is None:
        pytest.skip("libultramem_kernels.a is not built: `make plugins` builds it")
    return found


@pytest.fixture(scope="session")
def ort_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters for ONNX Runtime's CUDA provider, registered for its CPU provider (cuda_on_host/registered.cpp)."""
    target = tmp_path_factory.mktemp("ort_on_host") / "adapters.so"
    names = ("context", "custom_op", "library", "operators", "placed_tables", "problems", "cuda_operators")
    sources = [CHECKOUT / "plugins" / "onnxruntime" / f"{name}.cpp" for name in names]
    kernels = kernels_archive()
    flags = ["-shared", "-fPIC", '-DULTRAMEM_VERSION="test"', f"-I{CHECKOUT / 'plugins' / 'kernels'}"]
    shapes = CHECKOUT / "plugins" / "shapes.cpp"
    compile_for_host(target, *flags, *sources, SHIM / "registered.cpp", shapes, "-x", "none", kernels)
    return target


def test_onnxruntime_adapters(ort_adapters: Path) -> None:
    """What the CUDA provider's adapters make of ONNX Runtime's tensors: pointers, sizes, attributes, types."""
    run = backends.runtime(ort_adapters)

    @FEW
    @given(lookup=cases.lookups(), gate=cases.gates(), retrieval=cases.retrievals().filter(_is_small))
    def check(lookup: cases.Case, gate: cases.Case, retrieval: cases.Case) -> None:
        checks.check_sparse_lookup(lookup, {"ort": run})
        checks.check_sparse_gate(gate, {"ort": run})
        checks.check_tucker_topk(retrieval, {"ort": run})

    check()


def _is_small(case: cases.Case) -> bool:
    """Each head of each token takes the host's threads some fifty milliseconds."""
    tokens, heads, *_ = case.inputs["row_scores"].shape
    return tokens * heads <= 2


def test_the_cuda_library_serves_the_cpu_too() -> None:
    """An ONNX Runtime without CUDA registers it and runs the CPU kernels, as for nodes that a session leaves there."""
    library = built.ort_cuda_library()
    if library is None:
        pytest.skip("libultramem_ort_cuda.so is not built: `make plugins` builds it where nvcc is found")
    table, scores = cases.normal(8, (7, 16), (3, 5, 1))
    inputs = {"table": table, "addresses": torch.zeros(3, 5, dtype=torch.int64), "scores": scores}
    case = cases.Case(cases.sparse_lookup.OPERATOR, inputs, {"blocks": 2, "encoding": 0})
    checks.check_sparse_lookup(case, {"cpu": backends.runtime(library)})


def test_the_benchmarks_run(host: CudaLibrary) -> None:
    """Their arithmetic and their checks of what they time, on sizes that mean nothing."""
    lookup = gpu_operators.lookup(host, "cpu", rows=50, tokens=4, bandwidth=1e9, width=32)
    assert lookup.megabytes_read == 4 * 64 * 32 * 2 / 1e6 and lookup.share > 0
    assert gpu_operators.topk(host, "cpu", tokens=1, keys=20, k=3).tokens == 1
    rows, _ = gpu_decode.measure(host, "cpu", gpu_decode.TINY, [(2, 8)], room=1e9, repeats=1)
    assert rows[0].told(1e9)["step_against_moe"] > 0


def test_no_thread_races(tmp_path: Path) -> None:
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    flags = ["-g", "-fsanitize=thread"]
    built = subprocess.run([COMPILER, *flags, probe, "-o", tmp_path / "probe"], capture_output=True, check=False)
    if built.returncode != 0 or subprocess.run([tmp_path / "probe"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this compiler's ThreadSanitizer does not run here")
    compile_for_host(tmp_path / "races", SHIM / "races.cpp", *flags)
    result = subprocess.run([tmp_path / "races"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[:4000]
