"""SparseGate: the pre-value gate of UltraMemV2 (P2 §3.4, spec §3): gate_k = act(<pre_value[row_k], x>)."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional as F

from . import encoding, native, triton_kernels
from .schema import Attribute, Operator, Port

ACTIVATIONS = ("none", "gelu", "silu", "swiglu")

OPERATOR = Operator(
    name="SparseGate",
    doc=(
        "Dot product of x with one table row per address, and an activation of it. The row is address mod N, so the "
        "addresses of SparseLookup serve unchanged. With swiglu the row holds two vectors, gate first: "
        "silu(<row[:P], x>) * <row[P:], x>. gelu is the exact (erf) one. Arithmetic is in float32. " + encoding.DOC
    ),
    inputs=(
        Port("table", ("N", "W"), "V", "pre-values; W = P, or 2P for swiglu; half of that for int4"),
        Port("addresses", ("T", "K"), "I", "block*N + row; must be >= 0"),
        Port("x", ("T", "P"), "T", "the projected hidden state"),
        Port("scales", ("N",), "S", encoding.SCALES_DOC, optional=True),
    ),
    outputs=(Port("gate", ("T", "K"), "T", "one factor per address"),),
    types={"T": ("float32", "float16"), "V": encoding.TABLE_TYPES, "I": ("int64",), "S": ("float32",)},
    attributes=(
        Attribute("activation", "0 none, 1 gelu, 2 silu, 3 swiglu", default=0, choices=ACTIVATIONS),
        Attribute("encoding", encoding.ATTRIBUTE_DOC, default=0, choices=encoding.ENCODINGS),
    ),
    # The second product equals the first where W = P: Where picks by the attribute, with no branch for a host to lack.
    body="""{
        axis1 = Constant <value_ints = [1]> ()
        axis2 = Constant <value_ints = [2]> ()
        start = Constant <value_ints = [0]> ()
        end = Constant <value_ints = [9223372036854775807]> ()
        half = Constant <value_float = 0.5> ()
        unit = Constant <value_float = 1.0> ()
        inv_sqrt2 = Constant <value_float = 0.70710678118654752> ()
        is_gelu_code = Constant <value_int = 1> ()
        is_silu_code = Constant <value_int = 2> ()
        is_swiglu_code = Constant <value_int = 3> ()
        code = Constant <value_int: int = @activation> ()
        total = Shape <start = 0, end = 1> (table)
        rows = Mod (addresses, total)
        VALUES
        width = Shape <start = 1, end = 2> (x)
        minus_width = Neg (width)
        first = Slice (values, start, width, axis2)
        last = Slice (values, minus_width, end, axis2)
        x32 = Cast <to = 1> (x)
        x3 = Unsqueeze (x32, axis2)
        first3 = MatMul (first, x3)
        last3 = MatMul (last, x3)
        a = Squeeze (first3, axis2)
        b = Squeeze (last3, axis2)
        sigmoid = Sigmoid (a)
        silu = Mul (a, sigmoid)
        swiglu = Mul (silu, b)
        scaled = Mul (a, inv_sqrt2)
        erf = Erf (scaled)
        erf1 = Add (erf, unit)
        half_a = Mul (a, half)
        gelu = Mul (half_a, erf1)
        is_gelu = Equal (code, is_gelu_code)
        is_silu = Equal (code, is_silu_code)
        is_swiglu = Equal (code, is_swiglu_code)
        or_gelu = Where (is_gelu, gelu, a)
        or_silu = Where (is_silu, silu, or_gelu)
        gate32 = Where (is_swiglu, swiglu, or_silu)
        gate = CastLike (gate32, x)
    }""",
)

CHUNK_BYTES = 64 << 20


def reference(
    table: torch.Tensor,
    addresses: torch.Tensor,
    x: torch.Tensor,
    activation: int = 0,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gate [T, K] in the dtype of `x`; never holds more than about 64 MiB of gathered rows.

    A quantised table takes `scales` [N] float32. Raises IndexError where an address is negative.
    """
    encoding.check_scales("SparseGate", table, scales)
    if addresses.numel() and int(addresses.min()) < 0:
        raise IndexError(f"SparseGate: address {int(addresses.min())} is negative: not a memory layer's index")
    rows = addresses % table.shape[0]
    if encoding.reads_most(table, rows):
        return _gate_of_all(encoding.whole(table, scales), x, activation).gather(1, rows)
    per_token = max(1, rows.shape[1] * encoding.table_width(table) * 4)
    step = max(1, CHUNK_BYTES // per_token)
    spans = [slice(t, t + step) for t in range(0, rows.shape[0], step)]
    parts = [_gate(encoding.gather(table, rows[part], scales), x[part], activation) for part in spans]
    return torch.cat(parts) if parts else x.new_empty(addresses.shape)


def _gate(values: torch.Tensor, x: torch.Tensor, activation: int) -> torch.Tensor:
    """[T, K] of rows [T, K, W] float32."""
    x32, width = x.float(), x.shape[1]
    a = torch.einsum("tkp,tp->tk", values[..., :width], x32)
    b = torch.einsum("tkp,tp->tk", values[..., width:], x32) if ACTIVATIONS[activation] == "swiglu" else a
    return _activated(a, b, activation).to(x.dtype)


def _gate_of_all(values: torch.Tensor, x: torch.Tensor, activation: int) -> torch.Tensor:
    """[T, N] of a whole table [N, W] float32."""
    x32, width = x.float(), x.shape[1]
    a = x32 @ values[:, :width].T
    b = x32 @ values[:, width:].T if ACTIVATIONS[activation] == "swiglu" else a
    return _activated(a, b, activation).to(x.dtype)


def _activated(a: torch.Tensor, b: torch.Tensor, activation: int) -> torch.Tensor:
    kinds = {"none": lambda: a, "gelu": lambda: F.gelu(a), "silu": lambda: F.silu(a), "swiglu": lambda: F.silu(a) * b}
    return kinds[ACTIVATIONS[activation]]()


@torch.library.custom_op("ultramem::sparse_gate", mutates_args=())
def sparse_gate_op(
    table: torch.Tensor,
    addresses: torch.Tensor,
    x: torch.Tensor,
    activation: int = 0,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """The registered operator; see `reference`. Differentiable in `x`, in a float `table` and in `scales`."""
    if triton_kernels.take(table, scales):
        from .triton_kernels import operators

        return operators.sparse_gate(table, addresses, x, activation)
    return reference(table, addresses, x, activation, scales)


@sparse_gate_op.register_fake
def _(table, addresses, x, activation=0, scales=None):  # type: ignore[no-untyped-def]
    return x.new_empty(addresses.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    table, addresses, x, ctx.activation, scales = inputs
    ctx.save_for_backward(table, addresses, x, scales)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    table, addresses, x, scales = ctx.saved_tensors
    if triton_kernels.take(table, scales):
        from .triton_kernels import operators

        of_table, of_x = operators.sparse_gate_gradient(grad, table, addresses, x, ctx.activation)
        return of_table, None, of_x, None, None
    rows = addresses % table.shape[0]
    dense = encoding.reads_most(table, rows)
    with torch.enable_grad():
        values = encoding.whole(table, scales) if dense else encoding.gather(table, rows, scales)
        values, x_leaf = values.detach().requires_grad_(), x.detach().float().requires_grad_()
        if dense:
            out = _gate_of_all(values, x_leaf, ctx.activation).gather(1, rows)
            rows = torch.arange(table.shape[0], device=table.device)
        else:
            out = _gate(values, x_leaf, ctx.activation)
        grad_values, grad_x = torch.autograd.grad(out, (values, x_leaf), grad.float())
    grad_table, grad_scales = encoding.gradients(table, rows, scales, grad_values)
    return grad_table, None, grad_x.to(x.dtype), None, grad_scales


sparse_gate_op.register_autograd(_backward, setup_context=_setup_context)


def sparse_gate(
    table: torch.Tensor,
    addresses: torch.Tensor,
    x: torch.Tensor,
    activation: int = 0,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """The native kernel where it can be used (native.py), else the registered operator; see `reference`.

    Where a batch reads most of the table, the reference's products of matrices are faster than any gather.
    """
    encoding.check_scales("SparseGate", table, scales)
    in_parts = not encoding.reads_most(table, addresses)
    if in_parts and native.usable(table, (x,), addresses, scales) and _fits(table, addresses, x, activation):
        gate = native.sparse_gate(table, addresses, x, activation, scales)
        if gate is not None:
            return gate
    return cast(torch.Tensor, sparse_gate_op(table, addresses, x, activation, scales))


def _fits(table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor, activation: int) -> bool:
    vectors = 2 if ACTIVATIONS[activation] == "swiglu" else 1
    return (
        addresses.dtype == torch.int64
        and addresses.ndim == x.ndim == 2
        and len(addresses) == len(x)
        and encoding.table_width(table) == vectors * x.shape[1]
    )
