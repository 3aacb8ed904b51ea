"""The PyTorch operators as PyTorch sees them: registration, gradients, bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from ultramem_deploy.ops.sparse_gate import sparse_gate, sparse_gate_op
from ultramem_deploy.ops.sparse_lookup import sparse_lookup, sparse_lookup_op
from ultramem_deploy.ops.tucker_topk import tucker_topk, tucker_topk_op

from .cases import ENCODINGS, decoded, normal, quantised

ADDRESSES = torch.tensor([[0, 5, 11, 5], [3, 3, 9, 1], [2, 8, 0, 11]])
ROWS, BLOCKS, CORES, WIDTH = 6, 2, 2, 10
# The operators compute in float32, their truth here in float64: some hundred roundings of numbers near 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def lookup_formula(table: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """SparseLookup by one-hot matrices, differentiable in float64."""
    one_hot = F.one_hot(ADDRESSES, ROWS * BLOCKS).to(table.dtype).unflatten(2, (BLOCKS, ROWS))
    values = torch.einsum("tkpn,nd->tkpd", one_hot, table).unflatten(3, (CORES, WIDTH // CORES))
    return torch.einsum("tkpcw,tkc->tpcw", values, scores).flatten(1)


def gate_formula(activation: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """SparseGate by one-hot matrices, differentiable in float64."""

    def run(table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows = F.one_hot(ADDRESSES % ROWS, ROWS).to(table.dtype) @ table
        first = torch.einsum("tkp,tp->tk", rows[..., : x.shape[1]], x)
        last = torch.einsum("tkp,tp->tk", rows[..., -x.shape[1] :], x)
        return (first, F.gelu(first), F.silu(first), F.silu(first) * last)[activation]

    return run


def check_gradients(
    operator: Callable[..., torch.Tensor], formula: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    """Values and gradients of `operator` in float32 against those of `formula` in float64, for a random cotangent."""
    single = [x.clone().requires_grad_() for x in inputs]
    double = [x.double().requires_grad_() for x in inputs]
    output, expected = operator(*single), formula(*double)
    torch.testing.assert_close(output.double(), expected, **CLOSE)
    (weight,) = normal(9, tuple(output.shape))
    (output * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for x, y in zip(single, double, strict=True):
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, **CLOSE)


def test_sparse_lookup_gradients() -> None:
    inputs = normal(1, (ROWS, WIDTH), (*ADDRESSES.shape, CORES))
    check_gradients(lambda table, scores: sparse_lookup(table, ADDRESSES, scores, BLOCKS), lookup_formula, inputs)


@pytest.mark.parametrize("activation", range(4))
def test_sparse_gate_gradients(activation: int) -> None:
    inputs = normal(2, (ROWS, 14 if activation == 3 else 7), (len(ADDRESSES), 7))
    check_gradients(lambda table, x: sparse_gate(table, ADDRESSES, x, activation), gate_formula(activation), inputs)


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_scales_have_gradients(encoding: str) -> None:
    values, scores, x = normal(8, (ROWS, WIDTH), (*ADDRESSES.shape, CORES), (len(ADDRESSES), WIDTH))
    table = quantised(values, encoding)
    codes = torch.from_numpy(decoded(table["table"]))
    single, double = table["scales"].clone().requires_grad_(), table["scales"].double().requires_grad_()
    outputs = [
        (
            sparse_lookup(table["table"], ADDRESSES, scores, BLOCKS, single),
            lookup_formula(codes * double[:, None], scores.double()),
        ),
        (sparse_gate(table["table"], ADDRESSES, x, 2, single), gate_formula(2)(codes * double[:, None], x.double())),
    ]
    for output, expected in outputs:
        torch.testing.assert_close(output.double(), expected, **CLOSE)
        (gradient,) = torch.autograd.grad(output.square().sum(), single)
        (truth,) = torch.autograd.grad(expected.square().sum(), double)
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scales", [None, torch.ones(ROWS - 1), torch.ones(ROWS, dtype=torch.float16)])
def test_a_quantised_table_needs_its_scales(scales: torch.Tensor | None) -> None:
    table = torch.zeros(ROWS, WIDTH, dtype=torch.int8)
    with pytest.raises(
        ValueError, match=r"SparseLookup: scales for a table of encoding int8 must be \(\(6,\), torch.float32\)"
    ):
        sparse_lookup(table, ADDRESSES, torch.ones(*ADDRESSES.shape, 1), BLOCKS, scales)


def test_tucker_topk_gradients() -> None:
    heads, k, n_row, n_col = 2, 3, 7, 5
    row, col, u, v, core = normal(
        3, (4, heads, 2, n_row), (4, heads, 2, n_col), (heads, 2), (heads, 2), (2, heads, 2, 2)
    )
    index = tucker_topk(row, col, u, v, core, k)[1].reshape(4, heads, k)

    def formula(row: torch.Tensor, col: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
        grid = torch.einsum("thri,chrs,thsj->thijc", row, core, col).flatten(2, 3)
        return grid.gather(2, index[..., None].expand(-1, -1, -1, 2)).flatten(1, 2)

    check_gradients(lambda row, col, core: tucker_topk(row, col, u, v, core, k)[0], formula, [row, col, core])


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("check", OPCHECKS)
def test_opcheck(check: str) -> None:
    table, scores, x = (y.requires_grad_() for y in normal(4, (ROWS, WIDTH), (*ADDRESSES.shape, CORES), (3, WIDTH)))
    torch.library.opcheck(sparse_lookup_op, (table, ADDRESSES, scores, BLOCKS), test_utils=check)
    torch.library.opcheck(sparse_gate_op, (table, ADDRESSES, x, 1), test_utils=check)
    sides = [y.requires_grad_() for y in normal(5, (3, 2, 2, 6), (3, 2, 2, 5))]
    torch.library.opcheck(tucker_topk_op, (*sides, *normal(6, (2, 2), (2, 2), (2, 2, 2, 2)), 3), test_utils=check)


@pytest.mark.parametrize("address", [-1, ROWS * BLOCKS])
def test_lookup_refuses_an_address_outside_the_table(address: int) -> None:
    table, scores = normal(7, (ROWS, WIDTH), (1, 1, CORES))
    with pytest.raises(IndexError, match=rf"SparseLookup: address {address}.*outside \[0, {ROWS * BLOCKS}\)"):
        sparse_lookup(table, torch.tensor([[address]]), scores, BLOCKS)


def test_gate_refuses_a_negative_address() -> None:
    table, x = torch.zeros(3, 2), torch.zeros(1, 2)
    with pytest.raises(IndexError, match="address -1 is negative"):
        sparse_gate(table, torch.tensor([[0, -1]]), x)


def in_small_steps(table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Gated lookups of four tokens at a time, which gather their rows."""
    parts = [slice(t, t + 4) for t in range(0, len(x), 4)]
    gates = [sparse_gate(table, addresses[p], x[p], 1) for p in parts]
    weighted = [scores[p] * gate[..., None] for p, gate in zip(parts, gates, strict=True)]
    return torch.cat([sparse_lookup(table, addresses[p], w, BLOCKS) for p, w in zip(parts, weighted, strict=True)])


def test_many_rows_of_a_small_table_are_one_product() -> None:
    """Tokens that read most of a table take it whole: the same sums and gradients as rows gathered for a few."""
    generator = torch.Generator().manual_seed(8)
    addresses = torch.randint(0, ROWS * BLOCKS, (16, 5), generator=generator)
    table, x, scores = (y.requires_grad_() for y in normal(8, (ROWS, WIDTH), (16, WIDTH), (16, 5, CORES)))
    weighted = scores * sparse_gate(table, addresses, x, 1)[..., None]
    found = sparse_lookup(table, addresses, weighted, BLOCKS)
    wanted = in_small_steps(table, addresses, x, scores)
    torch.testing.assert_close(found, wanted, **CLOSE)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (table, x, scores)) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
