"""SparseLookup: the weighted sum of a few table rows a token (P1 §3.3 and §3.4, spec §3 and §5)."""

from __future__ import annotations

import torch

from .schema import Attribute, Operator, Port

OPERATOR = Operator(
    name="SparseLookup",
    doc=(
        "Weighted sum of one table row per address, kept apart by virtual block. An address is block*N + row. Core c "
        "weights the columns [c*D/M, (c+1)*D/M) of a row alone: out[t, p] = sum over k with block_k = p of "
        "scores[t, k, c] * table[row_k, columns of c]. Arithmetic is in float32."
    ),
    inputs=(
        Port("table", ("N", "D"), "V", "values, one row a physical slot"),
        Port("addresses", ("T", "K"), "I", "block*N + row, in [0, blocks*N)"),
        Port("scores", ("T", "K", "M"), "T", "weight of each address and core; M divides D"),
    ),
    outputs=(Port("output", ("T", "E*D"), "T", "the sums of the E = blocks virtual blocks, side by side"),),
    types={"T": ("float32", "float16"), "V": ("float32", "float16", "bfloat16"), "I": ("int64",)},
    attributes=(Attribute("blocks", "virtual blocks (implicit value expansion)", default=1),),
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
        width = Shape <start = 1, end = 2> (table)
        tokens = Shape <start = 0, end = 1> (addresses)
        taken = Shape <start = 1, end = 2> (addresses)
        cores = Shape <start = 2, end = 3> (scores)
        rows = Mod (addresses, total)
        block = Div (addresses, total)
        gathered = Gather <axis = 0> (table, rows)
        values = Cast <to = 1> (gathered)
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


def reference(table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int = 1) -> torch.Tensor:
    """Sums [T, blocks*D] in the dtype of `scores`; holds about 64 MiB of rows at a time.

    Raises IndexError where an address is outside [0, blocks*N).
    """
    _check_addresses(addresses, blocks * table.shape[0])
    # Gathered rows and the same rows weighted, in float32.
    step = max(1, CHUNK_BYTES // max(1, 2 * 4 * addresses.shape[1] * table.shape[1]))
    parts = [_sum(table, addresses[t : t + step], scores[t : t + step], blocks) for t in range(0, len(addresses), step)]
    return torch.cat(parts) if parts else scores.new_empty((0, blocks * table.shape[1]))


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


def _sum(table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int) -> torch.Tensor:
    tokens, taken, cores = scores.shape
    total, width = table.shape
    values = table[addresses % total].float().reshape(tokens, taken, cores, width // cores)
    weighted = (values * scores.float()[..., None]).reshape(tokens, taken, width)
    sums = weighted.sum(1) if blocks == 1 else _membership(addresses, total, blocks) @ weighted
    return sums.reshape(tokens, blocks * width).to(scores.dtype)


@torch.library.custom_op("ultramem::sparse_lookup", mutates_args=())
def sparse_lookup(table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int = 1) -> torch.Tensor:
    """The registered operator; see `reference`. Differentiable in `table` and `scores`."""
    return reference(table, addresses, scores, blocks)


@sparse_lookup.register_fake
def _(table, addresses, scores, blocks=1):  # type: ignore[no-untyped-def]
    return scores.new_empty((addresses.shape[0], blocks * table.shape[1]))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    table, addresses, scores, ctx.blocks = inputs
    ctx.save_for_backward(table, addresses, scores)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    table, addresses, scores = ctx.saved_tensors
    tokens, taken, cores = scores.shape
    total, width = table.shape
    rows = addresses % total
    grad_blocks = grad.float().reshape(tokens, ctx.blocks, width)
    block = (addresses // total)[..., None].expand(tokens, taken, width)
    grad_rows = grad_blocks.gather(1, block).reshape(tokens, taken, cores, width // cores)
    values = table[rows].float().reshape_as(grad_rows)
    grad_scores = (grad_rows * values).sum(-1)
    grad_table = torch.zeros_like(table, dtype=torch.float32)
    grad_table.index_add_(0, rows.flatten(), (grad_rows * scores.float()[..., None]).reshape(-1, width))
    return grad_table.to(table.dtype), None, grad_scores.to(scores.dtype), None


sparse_lookup.register_autograd(_backward, setup_context=_setup_context)
