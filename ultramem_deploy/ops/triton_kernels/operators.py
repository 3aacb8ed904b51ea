"""SparseLookup and SparseGate by the kernels of `rows`; shapes and types as in the operators' own files."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from . import rows


def sparse_lookup(table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int) -> torch.Tensor:
    """Sums [T, blocks*D] in the dtype of `scores`."""
    _assert_inside(addresses, blocks * table.shape[0], "SparseLookup")
    return rows.weighted_sum(table, addresses, scores, blocks)


def sparse_lookup_gradient(
    grad: torch.Tensor, table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the table and of the scores, in their types."""
    of_scores = rows.dots(table, addresses, grad, scores.shape[2], blocks).to(scores.dtype)
    return rows.table_gradient(table, addresses, scores, grad, blocks), of_scores


def sparse_gate(table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor, activation: int) -> torch.Tensor:
    """Gate [T, K] in the dtype of `x`; activation 0 none, 1 gelu, 2 silu, 3 swiglu."""
    _assert_inside(addresses, torch.iinfo(torch.int64).max, "SparseGate")
    return _activated(_products(table, addresses, x), activation).to(x.dtype)


def sparse_gate_gradient(
    grad: torch.Tensor, table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the table and of x, in their types: sums of rows, weighted by the gradients of the products."""
    with torch.enable_grad():
        products = _products(table, addresses, x).requires_grad_()
        (of_products,) = torch.autograd.grad(_activated(products, activation), products, grad.float())
    rows_of_x, sides = addresses % table.shape[0], table.shape[1] // x.shape[1]
    of_x = rows.weighted_sum(table, rows_of_x, of_products, 1).view(len(x), sides, -1).sum(1).to(x.dtype)
    return rows.table_gradient(table, rows_of_x, of_products, x.repeat(1, sides), 1), of_x


def _products(table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """float32 [T, K, S]: <row, x>, for swiglu with each half of the row."""
    sides = table.shape[1] // x.shape[1]
    return rows.dots(table, addresses % table.shape[0], x.repeat(1, sides), sides, 1)


def _activated(products: torch.Tensor, activation: int) -> torch.Tensor:
    first = products[..., 0]
    if activation == 3:
        return F.silu(first) * products[..., 1]
    return (first, F.gelu(first), F.silu(first))[activation]


def _assert_inside(addresses: torch.Tensor, limit: int, operator: str) -> None:
    inside = ((addresses >= 0) & (addresses < limit)).all()
    torch._assert_async(inside, f"{operator}: an address outside [0, {limit}): the indices do not belong to this table")
