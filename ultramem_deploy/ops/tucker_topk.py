"""TuckerTopK: Tucker-decomposed query-key retrieval (P1 §3.2): from key scores to the top-m virtual indices."""

from __future__ import annotations

from typing import cast

import torch

from . import native, triton_kernels
from .schema import Attribute, Operator, Port

OPERATOR = Operator(
    name="TuckerTopK",
    doc=(
        "Tucker-decomposed query-key retrieval. Stage 1 scores rows by sum_r u_r row[r,i] and columns by "
        "sum_r v_r col[r,j] and keeps the top min(k, n) of each side; stage 2 scores the kept grid with every core, "
        "g_c[i,j] = row[:,i]^T core_c col[:,j], and keeps the top k of sum_c g_c a head, best first. K = H*k. "
        "The virtual index is i*n_col + j. Arithmetic is in float32. Any of several tied entries may be returned."
    ),
    inputs=(
        Port("row_scores", ("T", "H", "R", "n_row"), "T", "score of every row key: <query, key> per head and rank"),
        Port("col_scores", ("T", "H", "R", "n_col"), "T", "score of every column key"),
        Port("u", ("H", "R"), "T", "left factor of the summed core's rank-1 approximation"),
        Port("v", ("H", "R"), "T", "right factor of the summed core's rank-1 approximation"),
        Port("core", ("M", "H", "R", "R"), "T", "the Tucker cores"),
    ),
    outputs=(
        Port("scores", ("T", "K", "M"), "T", "each core's own score of the kept pairs"),
        Port("indices", ("T", "K"), "I", "virtual indices in [0, n_row*n_col)"),
    ),
    types={"T": ("float32", "float16"), "I": ("int64",)},
    attributes=(Attribute("k", "values taken per head (top-m); 1 <= k <= min(k, n_row) * min(k, n_col)"),),
    # Expand keeps an empty batch legal: ONNX Runtime's MatMul does not broadcast against a dimension of 0.
    body="""{
        axis1 = Constant <value_ints = [1]> ()
        axis2 = Constant <value_ints = [2]> ()
        one = Constant <value_ints = [1]> ()
        k_scalar = Constant <value_int: int = @k> ()
        k_side = Reshape (k_scalar, one)
        tokens = Shape <start = 0, end = 1> (row_scores)
        heads = Shape <start = 1, end = 2> (row_scores)
        rank = Shape <start = 2, end = 3> (row_scores)
        n_row = Shape <start = 3, end = 4> (row_scores)
        n_col = Shape <start = 3, end = 4> (col_scores)
        cores = Shape <start = 0, end = 1> (core)
        k_row = Min (k_side, n_row)
        k_col = Min (k_side, n_col)
        row = Cast <to = 1> (row_scores)
        col = Cast <to = 1> (col_scores)
        u32 = Cast <to = 1> (u)
        v32 = Cast <to = 1> (v)
        core32 = Cast <to = 1> (core)
        u3 = Unsqueeze (u32, axis2)
        v3 = Unsqueeze (v32, axis2)
        u_row = Mul (row, u3)
        v_col = Mul (col, v3)
        a_row = ReduceSum <keepdims = 0> (u_row, axis2)
        a_col = ReduceSum <keepdims = 0> (v_col, axis2)
        best_a_row, i_row = TopK <axis = -1> (a_row, k_row)
        best_a_col, i_col = TopK <axis = -1> (a_col, k_col)
        i_row4 = Unsqueeze (i_row, axis2)
        i_col4 = Unsqueeze (i_col, axis2)
        row_shape = Concat <axis = 0> (tokens, heads, rank, k_row)
        col_shape = Concat <axis = 0> (tokens, heads, rank, k_col)
        i_row_rank = Expand (i_row4, row_shape)
        i_col_rank = Expand (i_col4, col_shape)
        kept_row = GatherElements <axis = 3> (row, i_row_rank)
        kept_col = GatherElements <axis = 3> (col, i_col_rank)
        row_t = Transpose <perm = [0, 1, 3, 2]> (kept_row)
        row5 = Unsqueeze (row_t, axis1)
        col5 = Unsqueeze (kept_col, axis1)
        core_shape = Concat <axis = 0> (tokens, cores, heads, rank, rank)
        core_t = Expand (core32, core_shape)
        left = MatMul (row5, core_t)
        grid = MatMul (left, col5)
        total = ReduceSum <keepdims = 0> (grid, axis1)
        candidates = Mul (k_row, k_col)
        flat_shape = Concat <axis = 0> (tokens, heads, candidates)
        flat = Reshape <allowzero = 1> (total, flat_shape)
        best, kept = TopK <axis = -1> (flat, k_side)
        grid_shape = Concat <axis = 0> (tokens, cores, heads, candidates)
        grid_flat = Reshape <allowzero = 1> (grid, grid_shape)
        kept4 = Unsqueeze (kept, axis1)
        kept_shape = Concat <axis = 0> (tokens, cores, heads, k_side)
        kept_cores = Expand (kept4, kept_shape)
        core_scores = GatherElements <axis = 3> (grid_flat, kept_cores)
        core_last = Transpose <perm = [0, 2, 3, 1]> (core_scores)
        taken = Mul (heads, k_side)
        scores_shape = Concat <axis = 0> (tokens, taken, cores)
        scores32 = Reshape <allowzero = 1> (core_last, scores_shape)
        scores = CastLike (scores32, row_scores)
        kept_row_at = Div (kept, k_col)
        kept_col_at = Mod (kept, k_col)
        i = GatherElements <axis = 2> (i_row, kept_row_at)
        j = GatherElements <axis = 2> (i_col, kept_col_at)
        i_scaled = Mul (i, n_col)
        virtual = Add (i_scaled, j)
        indices_shape = Concat <axis = 0> (tokens, taken)
        indices = Reshape <allowzero = 1> (virtual, indices_shape)
    }""",
)


def reference(
    row_scores: torch.Tensor,
    col_scores: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    core: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [T, K, M] in the dtype of `row_scores` and virtual indices [T, K] int64; shapes as in `OPERATOR`.

    Source: P1 §3.2 equations (5) to (9).
    """
    row, col, core32 = row_scores.float(), col_scores.float(), core.float()
    a_row = torch.einsum("hr,thrn->thn", u.float(), row)
    a_col = torch.einsum("hr,thrn->thn", v.float(), col)
    i_row = a_row.topk(min(k, row.shape[3]), dim=2).indices
    i_col = a_col.topk(min(k, col.shape[3]), dim=2).indices
    grid = _grid(_take(row, i_row), _take(col, i_col), core32)
    tokens, cores, heads, k_row, k_col = grid.shape
    kept = grid.sum(1).reshape(tokens, heads, k_row * k_col).topk(k, dim=2).indices
    flat = grid.reshape(tokens, cores, heads, k_row * k_col)
    scores = flat.gather(3, kept[:, None].expand(tokens, cores, heads, k)).permute(0, 2, 3, 1)
    i, j = i_row.gather(2, kept // k_col), i_col.gather(2, kept % k_col)
    indices = i * col.shape[3] + j
    scores = scores.reshape(tokens, heads * k, cores).to(row_scores.dtype)
    return scores.contiguous(), indices.reshape(tokens, heads * k)


def _take(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The kept entries [T,H,R,k] of [T,H,R,n] at `index` [T,H,k]."""
    return scores.gather(3, index[:, :, None].expand(-1, -1, scores.shape[2], -1))


def _grid(row: torch.Tensor, col: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """Every core's score of every candidate pair: [T, M, H, k_row, k_col]."""
    return row.transpose(2, 3)[:, None] @ core @ col[:, None]


@torch.library.custom_op("ultramem::tucker_topk", mutates_args=())
def tucker_topk_op(
    row_scores: torch.Tensor,
    col_scores: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    core: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The registered operator; see `reference`. Gradients flow through the kept scores to both sides and the cores."""
    if triton_kernels.take(row_scores):
        from .triton_kernels import topk

        return topk.tucker_topk(row_scores, col_scores, u, v, core, k)
    return reference(row_scores, col_scores, u, v, core, k)


@tucker_topk_op.register_fake
def _(row_scores, col_scores, u, v, core, k):  # type: ignore[no-untyped-def]
    tokens, heads = row_scores.shape[:2]
    scores = row_scores.new_empty((tokens, heads * k, core.shape[0]))
    return scores, row_scores.new_empty((tokens, heads * k), dtype=torch.int64)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    row_scores, col_scores, _, _, core, k = inputs
    ctx.k = k
    ctx.save_for_backward(row_scores, col_scores, core, output[1])


def _backward(ctx, grad_scores, _grad_indices):  # type: ignore[no-untyped-def]
    """d g_c = d(row^T core_c col): each kept pair sends gradient to one row entry, one column entry and the cores."""
    row_scores, col_scores, core, indices = ctx.saved_tensors
    if triton_kernels.take(row_scores):
        from .triton_kernels import topk

        of_row, of_col, of_core = topk.tucker_topk_gradient(grad_scores, indices, row_scores, col_scores, core)
        return of_row, of_col, None, None, of_core, None
    tokens, heads, _, n_col = col_scores.shape
    index = indices.reshape(tokens, heads, ctx.k)
    i, j = index // n_col, index % n_col
    row, col = _take(row_scores.float(), i), _take(col_scores.float(), j)
    grad = grad_scores.float().reshape(tokens, heads, ctx.k, -1)
    core32 = core.float()
    grad_row = torch.einsum("thkc,chrs,thsk->thrk", grad, core32, col)
    grad_col = torch.einsum("thkc,chrs,thrk->thsk", grad, core32, row)
    grad_core = torch.einsum("thkc,thrk,thsk->chrs", grad, row, col)
    return (
        _scatter(grad_row, i, row_scores),
        _scatter(grad_col, j, col_scores),
        None,
        None,
        grad_core.to(core.dtype),
        None,
    )


def _scatter(grad: torch.Tensor, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(like, dtype=torch.float32)
    out.scatter_add_(3, index[:, :, None].expand_as(grad), grad)
    return out.to(like.dtype)


tucker_topk_op.register_autograd(_backward, setup_context=_setup_context)


def tucker_topk(
    row_scores: torch.Tensor,
    col_scores: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    core: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The native kernel where it can be used (native.py), else the registered operator; see `reference`."""
    if native.usable(None, (row_scores, col_scores, u, v, core)) and _fits(row_scores, col_scores, u, v, core, k):
        return native.tucker_topk(row_scores, col_scores, u, v, core, k)
    return cast(tuple[torch.Tensor, torch.Tensor], tucker_topk_op(row_scores, col_scores, u, v, core, k))


def _fits(row: torch.Tensor, col: torch.Tensor, u: torch.Tensor, v: torch.Tensor, core: torch.Tensor, k: int) -> bool:
    if row.ndim != 4 or col.ndim != 4 or core.ndim != 4 or row.shape[:3] != col.shape[:3]:
        return False
    factors, square = row.shape[1:3], (*row.shape[1:3], row.shape[2])
    pairs = min(k, row.shape[3]) * min(k, col.shape[3])
    return u.shape == factors and v.shape == factors and core.shape[1:] == square and 1 <= k <= pairs
