"""The CUDA kernels on a GPU: the checks that every way to run an operator passes, and what only a device can show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops import cases, checks, cuda_backend
from tools.cuda_library import CudaLibrary

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LANES = (0, 16, 32, 64, 128)


@MANY
@given(case=cases.lookups(), lanes=st.sampled_from(LANES))
def test_sparse_lookup(cuda: CudaLibrary, case: cases.Case, lanes: int) -> None:
    checks.check_sparse_lookup(case, {"cuda": cuda_backend.backend(cuda, "cuda", lanes)})


@MANY
@given(case=cases.gates())
def test_sparse_gate(cuda: CudaLibrary, case: cases.Case) -> None:
    checks.check_sparse_gate(case, {"cuda": cuda_backend.backend(cuda, "cuda")})


@MANY
@given(case=cases.retrievals())
def test_tucker_topk(cuda: CudaLibrary, case: cases.Case) -> None:
    checks.check_tucker_topk(case, {"cuda": cuda_backend.backend(cuda, "cuda")})


def model_sized(seed: int = 0) -> cases.Case:
    """The retrieval of P1's 1.6B model for a batch of 8: 3584 keys a side, 42 kept, two heads, two cores."""
    shapes = ((8, 2, 2, 3584), (8, 2, 2, 3584), (2, 2), (2, 2), (2, 2, 2, 2))
    names = [port.name for port in cases.tucker_topk.OPERATOR.inputs]
    inputs = dict(zip(names, cases.normal(seed, *shapes), strict=True))
    return cases.Case(cases.tucker_topk.OPERATOR, inputs, {"k": 42})


def test_a_retrieval_of_a_models_size(cuda: CudaLibrary) -> None:
    checks.check_tucker_topk(model_sized(), {"cuda": cuda_backend.backend(cuda, "cuda")})


def test_runs_repeat_bit_for_bit(cuda: CudaLibrary) -> None:
    run = cuda_backend.backend(cuda, "cuda")
    first = run(model_sized())
    for _ in range(20):
        for before, now in zip(first, run(model_sized()), strict=True):
            np.testing.assert_array_equal(before, now)


def test_offsets_beyond_32_bits(cuda: CudaLibrary) -> None:
    """The last rows of a table of 2^32 + 2^20 bytes, told apart by their own number."""
    width, rows = 1024, (1 << 22) + 1024
    if torch.cuda.mem_get_info()[0] < 2 * rows * width:
        pytest.skip("the table takes 4.3 GB of device memory")
    table = torch.zeros(rows, width, dtype=torch.int8, device="cuda")
    table[-1], table[rows // 2] = 7, 3
    addresses = torch.tensor([[rows - 1, rows // 2]], device="cuda")
    inputs = {
        "table": table,
        "addresses": addresses,
        "scores": torch.tensor([[[1.0], [10.0]]], device="cuda"),
        "scales": torch.ones(rows, device="cuda"),
    }
    assert cuda.sparse_lookup(inputs, blocks=1, encoding=1).unique().tolist() == [37.0]
    x = torch.ones(1, width, device="cuda")
    gate = cuda.sparse_gate({**inputs, "x": x}, activation=0, encoding=1)
    assert gate.tolist() == [[7.0 * width, 3.0 * width]]


def test_mapped_host_memory(cuda: CudaLibrary) -> None:
    """A table in pinned host memory is read in place: unified addressing gives it one pointer everywhere."""
    table, scores = cases.normal(1, (50, 64), (4, 6, 1))
    addresses = torch.randint(50, (4, 6))
    inputs = {"addresses": addresses.cuda(), "scores": scores.cuda()}
    mapped = cuda.sparse_lookup({**inputs, "table": table.pin_memory()}, blocks=1)
    torch.testing.assert_close(mapped, cuda.sparse_lookup({**inputs, "table": table.cuda()}, blocks=1), rtol=0, atol=0)


def test_a_graph_captures_a_step(cuda: CudaLibrary) -> None:
    """Retrieval and lookup in one graph, replayed on other numbers."""
    inputs = {name: tensor.cuda() for name, tensor in model_sized().inputs.items()}
    table = torch.randn(1 << 12, 256, device="cuda")

    def step() -> torch.Tensor:
        scores, indices = cuda.tucker_topk(inputs, 42)
        return cuda.sparse_lookup({"table": table, "addresses": indices % len(table), "scores": scores}, blocks=1)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    for seed in (1, 2):
        for name, tensor in model_sized(seed).inputs.items():
            inputs[name].copy_(tensor)
        graph.replay()
        torch.testing.assert_close(output, step(), rtol=0, atol=0)
