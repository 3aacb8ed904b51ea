"""The PyTorch operators on a GPU, by Triton's kernels: values against float64, gradients against the references'."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.ops import cases, checks
from tests.ops.backends import torch_operator
from ultramem_deploy.ops import sparse_gate, sparse_lookup, triton_kernels, tucker_topk

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] == "1", reason="interpreted: run `make gpu`")
EXAMPLES = settings(max_examples=100, deadline=None)


def on_gpu(case: cases.Case) -> list[np.ndarray]:
    inputs = {name: tensor.cuda() for name, tensor in case.inputs.items()}
    assert triton_kernels.take(next(iter(inputs.values())))
    return torch_operator(replace(case, inputs=inputs))


@EXAMPLES
@given(case=cases.lookups())
def test_sparse_lookup(case: cases.Case) -> None:
    checks.check_sparse_lookup(case, {"triton": on_gpu})


@EXAMPLES
@given(case=cases.gates())
def test_sparse_gate(case: cases.Case) -> None:
    checks.check_sparse_gate(case, {"triton": on_gpu})


@EXAMPLES
@given(case=cases.retrievals())
def test_tucker_topk(case: cases.Case) -> None:
    checks.check_tucker_topk(case, {"triton": on_gpu})


def gradients(device: str, name: str) -> list[torch.Tensor]:
    """Of every float input of an operator at a model's sizes, for a fixed cotangent; on the CPU the references run."""
    table, scores, x = cases.normal(1, (5000, 1024), (64, 84, 2), (64, 512))
    row, col, u, v, core = cases.normal(2, (64, 2, 2, 900), (64, 2, 2, 900), (2, 2), (2, 2), (2, 2, 2, 2))
    addresses = torch.randint(0, 20_000, (64, 84), generator=torch.Generator().manual_seed(3)).to(device)
    chosen = {"lookup": (table, scores), "gate": (table, x), "topk": (row, col, core)}[name]
    leaves = [tensor.to(device).requires_grad_() for tensor in chosen]
    if name == "lookup":
        output = sparse_lookup.sparse_lookup(leaves[0], addresses, leaves[1], 4)
    elif name == "gate":
        output = sparse_gate.sparse_gate(leaves[0], addresses, leaves[1], 3)
    else:
        output = tucker_topk.tucker_topk(leaves[0], leaves[1], u.to(device), v.to(device), leaves[2], 42)[0]
    (weight,) = cases.normal(4, tuple(output.shape))
    return [grad.cpu() for grad in torch.autograd.grad((output * weight.to(device)).sum(), leaves)]


@pytest.mark.parametrize("name", ["lookup", "gate", "topk"])
def test_gradients(name: str) -> None:
    """float32 sums of at most some thousand terms in another order; and the same bits again."""
    first, second, expected = gradients("cuda", name), gradients("cuda", name), gradients("cpu", name)
    for mine, again, theirs in zip(first, second, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
        assert torch.equal(mine, again)
