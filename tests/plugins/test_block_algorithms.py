"""The CUDA kernels' block algorithms, compiled for the host, against the formulas in float64."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import cases, formulas

CHECKOUT = Path(__file__).resolve().parents[2]
KERNEL_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MARGIN = 1e-5  # below it float32 may choose another entry than float64
STORED = {0: np.float32, 1: np.float16, 2: ml_dtypes.bfloat16, 3: np.int8, 5: ml_dtypes.float8_e4m3fn}


class Problem(ctypes.Structure):
    """UltramemTuckerTopK."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row", "col", "u", "v", "core", "scores", "indices")),
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "rank", "n_row", "n_col", "cores", "k")),
    )


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    target = tmp_path_factory.mktemp("host") / "block_algorithms.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    source = CHECKOUT / "tests" / "plugins" / "block_algorithms.cpp"
    command = [compiler, *flags, f"-I{CHECKOUT / 'plugins'}", str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(target))


def run(host: ctypes.CDLL, case: cases.Case, cached: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {name: tensor.contiguous() for name, tensor in case.inputs.items()}
    tokens, heads, rank, n_row = inputs["row_scores"].shape
    cores, k = inputs["core"].shape[0], case.attributes["k"]
    scores = torch.full((tokens, heads * k, cores), torch.nan, dtype=case.dtype)
    indices = torch.full((tokens, heads * k), -1, dtype=torch.int64)
    pointers = [tensor.data_ptr() for tensor in (*inputs.values(), scores, indices)]
    sizes = (tokens, heads, rank, n_row, inputs["col_scores"].shape[3], cores, k)
    host.host_tucker_topk(ctypes.byref(Problem(*pointers, KERNEL_TYPES[case.dtype], *sizes)), cached, seed)
    return scores, indices


@given(case=cases.retrievals(), cached=st.booleans(), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_retrieval_is_the_formula(host: ctypes.CDLL, case: cases.Case, cached: bool, seed: int) -> None:
    scores, indices = run(host, case, cached, seed)
    exact, k, n_col = case.exact(), case.attributes["k"], case.inputs["col_scores"].shape[3]
    for t in range(scores.shape[0]):
        for h in range(exact["u"].shape[0]):
            chosen, margin = formulas.tucker_topk(*list(exact.values()), k, t, h)
            found = indices[t, h * k : (h + 1) * k].tolist()
            assert len(set(found)) == k
            if margin > MARGIN:
                assert set(found) == chosen
            row, col, core = exact["row_scores"], exact["col_scores"], exact["core"]
            expected = [formulas.core_scores(row, col, core, t, h, *divmod(index, n_col)) for index in found]
            got = scores[t, h * k : (h + 1) * k].double().numpy()
            # Of every output: half an ulp of its type, and a few float32 roundings of sums of up to nine terms.
            step = {torch.float32: 1e-6, torch.float16: 1e-3}[case.dtype]
            np.testing.assert_allclose(got, expected, rtol=step, atol=1e-5 if case.dtype == torch.float32 else 2e-3)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 70), k=st.integers(1, 40), cached=st.booleans())
@settings(max_examples=60, deadline=None)
def test_ties_go_to_the_smaller_position(host: ctypes.CDLL, seed: int, n: int, k: int, cached: bool) -> None:
    """Small integers are exact in float32, so the order of equal scores is all that a stable sort leaves to see."""
    k = min(k, n * n)
    generator = np.random.default_rng(seed)
    row, col, u, v, core = (
        generator.integers(-2, 3, shape).astype(np.float32)
        for shape in ((1, 1, 2, n), (1, 1, 2, n), (1, 2), (1, 2), (2, 1, 2, 2))
    )
    names = ("row_scores", "col_scores", "u", "v", "core")
    inputs = {name: torch.from_numpy(x) for name, x in zip(names, (row, col, u, v, core), strict=True)}
    _, indices = run(host, cases.Case(cases.tucker_topk.OPERATOR, inputs, {"k": k}), cached, seed)
    side = min(k, n)
    rows = np.argsort(-formulas.stage_one(row, u)[0, 0], kind="stable")[:side]
    cols = np.argsort(-formulas.stage_one(col, v)[0, 0], kind="stable")[:side]
    grid = row[0, 0][:, rows].T @ core.sum(0)[0] @ col[0, 0][:, cols]
    kept = np.argsort(-grid.ravel(), kind="stable")[:k]
    np.testing.assert_array_equal(indices[0].numpy(), rows[kept // side] * n + cols[kept % side])


def test_a_nan_ranks_first(host: ctypes.CDLL) -> None:
    inputs = {
        "row_scores": torch.tensor([[[[1.0, float("nan"), 3.0, -0.0, 0.0]]]]),
        "col_scores": torch.ones(1, 1, 1, 1),
        "u": torch.ones(1, 1),
        "v": torch.ones(1, 1),
        "core": torch.ones(1, 1, 1, 1),
    }
    _, indices = run(host, cases.Case(cases.tucker_topk.OPERATOR, inputs, {"k": 5}), True, 0)
    assert indices.tolist() == [[1, 2, 0, 3, 4]]


@pytest.mark.parametrize("kernel_type", [*STORED, 4])
def test_rows_decode_exactly(host: ctypes.CDLL, kernel_type: int) -> None:
    """Every byte value in every place of sixteen bytes, against ml_dtypes and NumPy."""
    for shift in range(256):
        raw = ((np.arange(16) * 17 + shift) % 256).astype(np.uint8)
        wide, single = np.zeros(32, np.float32), np.ones(32, np.float32)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (raw, wide, single)]
        host.host_decode(kernel_type, *pointers)
        if kernel_type == 4:
            expected = np.stack([raw & 15, raw >> 4], axis=1).ravel().astype(np.float32) - 8
        else:
            expected = raw.view(STORED[kernel_type]).astype(np.float32)
        np.testing.assert_array_equal(wide[: expected.size], expected)
        np.testing.assert_array_equal(single[: expected.size], expected)


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_is_to_nearest_even(host: ctypes.CDLL, values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    bfloat, half = np.zeros(numbers.size, ml_dtypes.bfloat16), np.zeros(numbers.size, np.float16)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (numbers, bfloat, half)]
    host.host_round(*pointers, ctypes.c_int64(numbers.size))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(bfloat.astype(np.float32), numbers.astype(ml_dtypes.bfloat16).astype(np.float32))
        np.testing.assert_array_equal(half, numbers.astype(np.float16))
