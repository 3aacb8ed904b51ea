"""SparseLookup: the weighted sum of a few table rows a token (P1 §3.3 and §3.4, spec §3 and §5)."""

from __future__ import annotations

from typing import cast

import torch

from . import encoding, native, triton_kernels
from .schema import Attribute, Operator, Port

OPERATOR = Operator(
    name="SparseLookup",
    doc=(
        "Weighted sum of one table row per address, kept apart by virtual block. An address is block*N + row. Core c "
        "weights the columns [c*D/M, (c+1)*D/M) of a row alone: out[t, p] = sum over k with block_k = p of "
        "scores[t, k, c] * table[row_k, columns of c]. Arithmetic is in float32. " + encoding.DOC
    ),
    inputs=(
        Port("table", ("N", "W"), "V", "values, one row a physical slot; W = D, or D/2 for int4"),
        Port("addresses", ("T", "K"), "I", "block*N + row, in [0, blocks*N)"),
        Port("scores", ("T", "K", "M"), "T", "weight of each address and core; M divides D"),
        Port("scales", ("N",), "S", encoding.SCALES_DOC, optional=True),
    ),
    outputs=(Port("output", ("T", "E*D"), "T", "the sums of the E = blocks virtual blocks, side by side"),),
    types={"T": ("float32", "float16"), "V": encoding.TABLE_TYPES, "I": ("int64",), "S": ("float32",)},
    attributes=(
        Attribute("blocks", "virtual blocks (implicit value expansion)", default=1),
        Attribute("encoding", encoding.ATTRIBUTE_DOC, default=0, choices=encoding.ENCODINGS),
    ),
    body="""{
        axis1 = Constant <value_ints = [1]> ()
        axis3 = Constant <value_ints = [3]> ()
        column = Constant <value_ints = [1, -1, 1]> ()
        one = Constant <value_ints = [1]> ()
        zero = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        blocks_scalar = Constant <value_int: int = @blocks> ()
        blocks1 = Reshape (blocks_scalar, one)
        total = Shape <start = 0, end = 1> (table)
        tokens = Shape <start = 0, end = 1> (addresses)
        taken = Shape <start = 1, end = 2> (addresses)
        cores = Shape <start = 2, end = 3> (scores)
        rows = Mod (addresses, total)
        block = Div (addresses, total)
        VALUES
        width = Shape <start = 2, end = 3> (values)
        core_width = Div (width, cores)
        split_shape = Concat <axis = 0> (tokens, taken, cores, core_width)
        split = Reshape <allowzero = 1> (values, split_shape)
        scores32 = Cast <to = 1> (scores)
        scores4 = Unsqueeze (scores32, axis3)
        weighted4 = Mul (split, scores4)
        row_shape = Concat <axis = 0> (tokens, taken, width)
        weighted = Reshape <allowzero = 1> (weighted4, row_shape)
        ids = Range (zero, blocks_scalar, step)
        ids3 = Reshape (ids, column)
        block3 = Unsqueeze (block, axis1)
        is_member = Equal (block3, ids3)
        member = Cast <to = 1> (is_member)
        sums = MatMul (member, weighted)
        out_width = Mul (blocks1, width)
        out_shape = Concat <axis = 0> (tokens, out_width)
        output32 = Reshape <allowzero = 1> (sums, out_shape)
        output = CastLike (output32, scores)
    }""",
)

CHUNK_BYTES = 64 << 20


def reference(
    table: torch.Tensor,
    addresses: torch.Tensor,
    scores: torch.Tensor,
    blocks: int = 1,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums [T, blocks*D] in the dtype of `scores`; holds about 64 MiB of rows at a time.

    A quantised table takes `scales` [N] float32. Raises IndexError where an address is outside [0, blocks*N).
    """
    encoding.check_scales("SparseLookup", table, scales)
    _check_addresses(addresses, blocks * table.shape[0])
    width = encoding.table_width(table)
    if encoding.reads_most(table, addresses):
        return _sum_of_all(encoding.whole(table, scales), addresses, scores, blocks).to(scores.dtype)
    # Gathered rows and the same rows weighted, in float32.
    step = max(1, CHUNK_BYTES // max(1, 2 * 4 * addresses.shape[1] * width))
    spans = [slice(t, t + step) for t in range(0, len(addresses), step)]
    parts = [_sum(table, addresses[part], scores[part], blocks, scales) for part in spans]
    return torch.cat(parts) if parts else scores.new_empty((0, blocks * width))


def _check_addresses(addresses: torch.Tensor, limit: int) -> None:
    if addresses.numel() and (int(addresses.min()) < 0 or int(addresses.max()) >= limit):
        raise IndexError(
            f"SparseLookup: address {int(addresses.min())}..{int(addresses.max())} outside [0, {limit}): "
            "the indices do not belong to this table"
        )


def _membership(addresses: torch.Tensor, total: int, blocks: int) -> torch.Tensor:
    """[T, E, K]: 1 where an address lies in a block."""
    ids = torch.arange(blocks, device=addresses.device)
    return ((addresses // total)[:, None] == ids[None, :, None]).float()


def _sum(
    table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int, scales: torch.Tensor | None
) -> torch.Tensor:
    tokens, taken, cores = scores.shape
    total, width = table.shape[0], encoding.table_width(table)
    values = encoding.gather(table, addresses % total, scales).reshape(tokens, taken, cores, width // cores)
    weighted = (values * scores.float()[..., None]).reshape(tokens, taken, width)
    sums = weighted.sum(1) if blocks == 1 else _membership(addresses, total, blocks) @ weighted
    return sums.reshape(tokens, blocks * width).to(scores.dtype)


def _sum_of_all(values: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int) -> torch.Tensor:
    """As `_sum`, of a whole table [N, D] float32: scores spread over all rows, then one product a core."""
    tokens, _, cores = scores.shape
    total, width = values.shape
    at = addresses[..., None].expand_as(scores)
    weights = scores.new_zeros((tokens, blocks * total, cores), dtype=torch.float32).scatter_add(1, at, scores.float())
    per_core = weights.reshape(tokens * blocks, total, cores).permute(2, 0, 1)
    sums = per_core @ values.reshape(total, cores, width // cores).transpose(0, 1)
    return sums.transpose(0, 1).reshape(tokens, blocks * width)


@torch.library.custom_op("ultramem::sparse_lookup", mutates_args=())
def sparse_lookup_op(
    table: torch.Tensor,
    addresses: torch.Tensor,
    scores: torch.Tensor,
    blocks: int = 1,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """The registered operator; see `reference`. Differentiable in `scores`, in a float `table` and in `scales`."""
    if triton_kernels.take(table, scales):
        from .triton_kernels import operators

        return operators.sparse_lookup(table, addresses, scores, blocks)
    return reference(table, addresses, scores, blocks, scales)


@sparse_lookup_op.register_fake
def _(table, addresses, scores, blocks=1, scales=None):  # type: ignore[no-untyped-def]
    return scores.new_empty((addresses.shape[0], blocks * encoding.table_width(table)))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    table, addresses, scores, ctx.blocks, scales = inputs
    ctx.save_for_backward(table, addresses, scores, scales)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    table, addresses, scores, scales = ctx.saved_tensors
    if triton_kernels.take(table, scales):
        from .triton_kernels import operators

        of_table, of_scores = operators.sparse_lookup_gradient(grad, table, addresses, scores, ctx.blocks)
        return of_table, None, of_scores, None, None
    if encoding.reads_most(table, addresses):
        return _backward_of_all(ctx, grad)  # type: ignore[no-untyped-call]
    tokens, taken, cores = scores.shape
    total, width = table.shape[0], encoding.table_width(table)
    rows = addresses % total
    grad_blocks = grad.float().reshape(tokens, ctx.blocks, width)
    block = (addresses // total)[..., None].expand(tokens, taken, width)
    grad_rows = grad_blocks.gather(1, block).reshape(tokens, taken, cores, width // cores)
    values = encoding.gather(table, rows, scales).reshape_as(grad_rows)
    grad_scores = (grad_rows * values).sum(-1)
    weighted = (grad_rows * scores.float()[..., None]).reshape(tokens, taken, width)
    grad_table, grad_scales = encoding.gradients(table, rows, scales, weighted)
    return grad_table, None, grad_scores.to(scores.dtype), None, grad_scales


def _backward_of_all(ctx, grad):  # type: ignore[no-untyped-def]
    table, addresses, scores, scales = ctx.saved_tensors
    with torch.enable_grad():
        values = encoding.whole(table, scales).detach().requires_grad_()
        leaf = scores.detach().float().requires_grad_()
        out = _sum_of_all(values, addresses, leaf, ctx.blocks)
        grad_values, grad_scores = torch.autograd.grad(out, (values, leaf), grad.float())
    rows = torch.arange(table.shape[0], device=table.device)
    grad_table, grad_scales = encoding.gradients(table, rows, scales, grad_values)
    return grad_table, None, grad_scores.to(scores.dtype), None, grad_scales


sparse_lookup_op.register_autograd(_backward, setup_context=_setup_context)


def sparse_lookup(
    table: torch.Tensor,
    addresses: torch.Tensor,
    scores: torch.Tensor,
    blocks: int = 1,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """The native kernel where it can be used (native.py), else the registered operator; see `reference`.

    Where a batch reads most of the table, the reference's products of matrices are faster than any gather.
    """
    encoding.check_scales("SparseLookup", table, scales)
    in_parts = not encoding.reads_most(table, addresses)
    if in_parts and native.usable(table, (scores,), addresses, scales) and _fits(table, addresses, scores):
        output = native.sparse_lookup(table, addresses, scores, blocks, scales)
        if output is not None:
            return output
    return cast(torch.Tensor, sparse_lookup_op(table, addresses, scores, blocks, scales))


def _fits(table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor) -> bool:
    found, weighted = addresses.shape, scores.shape
    return (
        addresses.dtype is torch.int64
        and len(weighted) == 3
        and found == weighted[:2]
        and weighted[2] > 0
        and encoding.table_width(table) % weighted[2] == 0
    )
