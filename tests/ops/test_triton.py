"""Triton's kernels under its interpreter, on the CPU: values and gradients against float64, ties, repeated bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from ultramem_deploy.ops import sparse_gate, sparse_lookup, triton_kernels, tucker_topk

from . import checks, test_torch
from .backends import torch_operator
from .cases import Case, gates, lookups, normal, retrievals

pytest.importorskip("triton", reason="triton is not installed: pip install 'ultramem-deploy[gpu]'")

# The interpreter is slow: as many examples of each operator as stay within some seconds.
EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

RUNNERS = {"triton": torch_operator}


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators take the kernels for CPU tensors too, as they do on a GPU."""
    monkeypatch.setattr(triton_kernels, "take", lambda tensor, scales=None: scales is None)


@EXAMPLES
@given(case=lookups())
def test_sparse_lookup(case: Case) -> None:
    checks.check_sparse_lookup(case, RUNNERS)


@EXAMPLES
@given(case=gates())
def test_sparse_gate(case: Case) -> None:
    checks.check_sparse_gate(case, RUNNERS)


@settings(EXAMPLES, max_examples=8)
@given(case=retrievals())
def test_tucker_topk(case: Case) -> None:
    checks.check_tucker_topk(case, RUNNERS)


def test_gradients() -> None:
    """Those of the references' own tests, with the kernels behind the same operators."""
    test_torch.test_sparse_lookup_gradients()
    test_torch.test_tucker_topk_gradients()
    for activation in range(4):
        test_torch.test_sparse_gate_gradients(activation)


@pytest.mark.parametrize("table_type", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("type", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows, width, cores, blocks", [(7, 1536, 2, 1), (5, 260, 4, 3), (1, 33, 3, 2), (4, 520, 1, 4)])
def test_lookup_gradients_of_every_type(
    rows: int, width: int, cores: int, blocks: int, type: torch.dtype, table_type: torch.dtype
) -> None:
    """Several tiles of columns, cores that end within one, rows used by many tokens; against autograd in float64."""
    table, scores = normal(width, (rows, width), (6, 19, cores))
    table, scores = table.to(table_type).requires_grad_(), scores.to(type).requires_grad_()
    addresses = torch.randint(0, rows * blocks, (6, 19), generator=torch.Generator().manual_seed(1))
    output = sparse_lookup.sparse_lookup(table, addresses, scores, blocks)
    (weight,) = normal(3, tuple(output.shape))
    (output.float() * weight.to(type)).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (table, scores)]
    member = torch.nn.functional.one_hot(addresses, rows * blocks).double().unflatten(2, (blocks, rows))
    picked = torch.einsum("tkpn,nd->tkpd", member, exact[0]).unflatten(3, (cores, -1))
    (torch.einsum("tkpcw,tkc->tpcw", picked, exact[1]).flatten(1) * weight.to(type).double()).sum().backward()
    for found, truth in zip((table, scores), exact, strict=True):
        assert found.grad is not None and truth.grad is not None
        assert found.grad.dtype == found.dtype
        # One rounding of the result (the interpreter cuts bfloat16 off instead), float32 sums of some hundred terms.
        step = torch.finfo(found.dtype).eps / (1 if found.dtype == torch.bfloat16 else 2)
        torch.testing.assert_close(found.grad.double(), truth.grad, rtol=max(step, 1e-5), atol=1e-3 * step + 1e-4)


def test_equal_inputs_give_equal_bits() -> None:
    """Rows used many times: no sum depends on which thread comes first."""
    table, scores, grad = normal(5, (3, 64), (50, 9, 2), (50, 64))
    addresses = torch.randint(0, 3, (50, 9), generator=torch.Generator().manual_seed(2))
    runs = []
    for _ in range(2):
        leaf = table.clone().requires_grad_()
        sparse_lookup.sparse_lookup(leaf, addresses, scores, 1).backward(grad)
        runs.append(leaf.grad)
    assert torch.equal(*runs)


def test_ties_go_to_the_smaller_position_and_nan_ranks_first() -> None:
    row, col = torch.zeros(1, 1, 2, 40), torch.zeros(1, 1, 2, 30)
    factors = torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 1, 2, 2)
    _, indices = tucker_topk.tucker_topk(row, col, *factors, 5)
    assert indices.tolist() == [[0, 1, 2, 3, 4]]
    row[0, 0, 0, 17] = float("nan")
    row[0, 0, 0, 9], row[0, 0, 0, 21] = -0.0, float("inf")
    scores, indices = tucker_topk.tucker_topk(row, col, *factors, 5)
    assert (indices // 30).tolist() == [[17] * 5] and scores.isnan().all()
    row[0, 0, 0, 17] = 0.0
    assert (tucker_topk.tucker_topk(row, col, *factors, 2)[1] // 30).tolist() == [[21, 21]]


def test_more_candidates_than_a_chunk() -> None:
    """A side of 1,100 keys and a grid of 24 x 24: selected chunk by chunk, the same as at once."""
    row, col, u, v, core = normal(6, (1, 1, 2, 1100), (1, 1, 2, 30), (1, 2), (1, 2), (2, 1, 2, 2))
    found = tucker_topk.tucker_topk(row, col, u, v, core, 24)
    scores, indices = tucker_topk.reference(row, col, u, v, core, 24)
    assert torch.equal(found[1], indices)
    torch.testing.assert_close(found[0], scores, rtol=1e-5, atol=1e-5)


def test_topk_gradients_where_many_pairs_share_entries() -> None:
    """More pairs than the kernel compares at a time, over few rows and columns; against autograd in float64."""
    row, col, u, v, core = normal(7, (2, 2, 2, 9), (2, 2, 2, 5), (2, 2), (2, 2), (3, 2, 2, 2))
    single = [x.requires_grad_() for x in (row, col, core)]
    scores, indices = tucker_topk.tucker_topk(row, col, u, v, core, 40)
    (weight,) = normal(8, tuple(scores.shape))
    found = torch.autograd.grad((scores * weight).sum(), single)
    double = [x.detach().double().requires_grad_() for x in single]
    grid = torch.einsum("thri,chrs,thsj->thijc", double[0], double[2], double[1]).flatten(2, 3)
    kept = grid.gather(2, indices.reshape(2, 2, 40, 1).expand(-1, -1, -1, 3)).flatten(1, 2)
    expected = torch.autograd.grad((kept * weight.double()).sum(), double)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("address", [-1, 6])
def test_an_address_outside_the_table(address: int) -> None:
    with pytest.raises(RuntimeError, match=r"SparseLookup: an address outside \[0, 6\)"):
        sparse_lookup.sparse_lookup(torch.ones(3, 8), torch.tensor([[0, address]]), torch.ones(1, 2, 1), 2)


def test_an_empty_batch() -> None:
    table, none = torch.ones(3, 8, requires_grad=True), torch.empty((0, 4), dtype=torch.int64)
    output = sparse_lookup.sparse_lookup(table, none, torch.empty(0, 4, 1), 2)
    assert output.shape == (0, 16)
    output.sum().backward()
    assert table.grad is not None and not table.grad.any()
    assert sparse_gate.sparse_gate(table, none, torch.empty(0, 8), 1).shape == (0, 4)
    sides = torch.empty(0, 2, 2, 5), torch.empty(0, 2, 2, 6)
    scores, indices = tucker_topk.tucker_topk(*sides, *normal(1, (2, 2), (2, 2), (3, 2, 2, 2)), 3)
    assert scores.shape == (0, 6, 3) and indices.shape == (0, 6)
