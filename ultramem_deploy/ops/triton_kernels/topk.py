"""Kernels of TuckerTopK: the best keys of a side, the best pairs of the candidate grid, and the gradient of the scores.

A candidate is one int64: its score's bits, mapped so that integers order as the numbers do, above its position's
complement. So the largest integers are the best scores, a NaN ranks above every number, and ties go to the smaller
position, whatever order a selection network compares in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = 512
"""Candidates selected from at a time."""
PAIRS = 16
"""Pairs compared with all others at a time."""
NOTHING = tl.constexpr(-(1 << 63))
LAST = tl.constexpr(0xFFFFFFFF)


@triton.jit
def packed(score, position, exists):
    """Score float32 and position below 2^32 as one int64 that orders as described above."""
    score += 0.0  # the two zeros are one number
    bits = tl.where(score == score, score.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    ordered = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)
    return tl.where(exists, (ordered << 32) | (position.to(tl.int64) ^ LAST), NOTHING)


@triton.jit
def kept(best, more, KEEP: tl.constexpr):
    """The KEEP largest of two sets, in falling order; `best` holds KEEP, `more` at least as many."""
    return tl.topk(tl.interleave(best, tl.topk(more, KEEP)), KEEP)


@triton.jit
def side_kernel(
    scores, factor, indices, heads, keys, keep, RANK: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr
):
    """indices[t, h] = the keys with the largest sum over r of factor[h, r] * scores[t, h, r, key], best first."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    best = tl.full((KEEP,), NOTHING, tl.int64)
    for start in range(0, keys, CHUNK):
        key = start + tl.arange(0, CHUNK)
        total = tl.zeros((CHUNK,), tl.float32)
        for r in tl.static_range(RANK):
            score = tl.load(scores + (program * RANK + r) * keys + key, mask=key < keys, other=0.0)
            total += tl.load(factor + head * RANK + r).to(tl.float32) * score.to(tl.float32)
        best = kept(best, packed(total, key, key < keys), KEEP)
    place = tl.arange(0, KEEP)
    tl.store(indices + program * keep + place, (best & LAST) ^ LAST, mask=place < keep)


@triton.jit
def pair_score(row, col, core, i, j, exists, rows, cols, RANK: tl.constexpr):
    """sum over r, s of row[r, i] * core[r, s] * col[s, j] for the pairs (i, j) of one token, head and core."""
    total = tl.zeros(i.shape, tl.float32)
    for r in tl.static_range(RANK):
        left = tl.load(row + r * rows + i, mask=exists, other=0.0).to(tl.float32)
        for s in tl.static_range(RANK):
            right = tl.load(col + s * cols + j, mask=exists, other=0.0).to(tl.float32)
            total += left * tl.load(core + r * RANK + s).to(tl.float32) * right
    return total


@triton.jit
def pairs_kernel(
    row_scores, col_scores, core, row_kept, col_kept, scores, indices, heads, rows, cols, row_keep, col_keep, k,
    RANK: tl.constexpr, CORES: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The k pairs of the kept rows and columns with the largest sum of the cores' scores, best first."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    row, col = row_scores + program * RANK * rows, col_scores + program * RANK * cols
    best = tl.full((KEEP,), NOTHING, tl.int64)
    for start in range(0, row_keep * col_keep, CHUNK):
        pair = start + tl.arange(0, CHUNK)
        exists = pair < row_keep * col_keep
        i = tl.load(row_kept + program * row_keep + pair // col_keep, mask=exists, other=0)
        j = tl.load(col_kept + program * col_keep + pair % col_keep, mask=exists, other=0)
        total = tl.zeros((CHUNK,), tl.float32)
        for c in tl.static_range(CORES):
            at = core + (c * heads + head) * RANK * RANK
            total += pair_score(row, col, at, i, j, exists, rows, cols, RANK)
        best = kept(best, packed(total, pair, exists), KEEP)
    place = tl.arange(0, KEEP)
    taken = place < k
    pair = (best & LAST) ^ LAST
    i = tl.load(row_kept + program * row_keep + pair // col_keep, mask=taken, other=0)
    j = tl.load(col_kept + program * col_keep + pair % col_keep, mask=taken, other=0)
    tl.store(indices + program * k + place, i * cols + j, mask=taken)
    for c in tl.static_range(CORES):
        at = core + (c * heads + head) * RANK * RANK
        own = pair_score(row, col, at, i, j, taken, rows, cols, RANK)
        tl.store(scores + (program * k + place) * CORES + c, own.to(scores.dtype.element_ty), mask=taken)


@triton.jit
def gradient_kernel(
    gradient, indices, row_scores, col_scores, core, row_gradient, col_gradient, core_gradient, heads, rows, cols, k,
    RANK: tl.constexpr, CORES: tl.constexpr, KEEP: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Gradients of one token and head: of the row and column entries that were kept, and its share of the cores'.

    Pairs share entries. Every pair sums over all pairs with its row, PAIRS at a time, and over those with its column:
    those that share an entry store the same sum there.
    """
    program = tl.program_id(0).to(tl.int64)
    row, col = row_scores + program * RANK * rows, col_scores + program * RANK * cols
    core += program % heads * RANK * RANK
    gradient, indices = gradient + program * k * CORES, indices + program * k
    place = tl.arange(0, KEEP)
    taken = place < k
    index = tl.load(indices + place, mask=taken, other=0)
    i, j = index // cols, index % cols
    for r in tl.static_range(RANK):
        of_row, of_col = tl.zeros((KEEP,), tl.float32), tl.zeros((KEEP,), tl.float32)
        for start in range(0, k, PAIRS):
            pair = start + tl.arange(0, PAIRS)
            at = tl.load(indices + pair, mask=pair < k, other=0)
            to_row, to_col = pair_gradient(gradient, row, col, core, at, pair, r, heads, rows, cols, k, RANK, CORES)
            of_row += tl.sum(tl.where(i[:, None] == (at // cols)[None, :], to_row[None, :], 0.0), 1)
            of_col += tl.sum(tl.where(j[:, None] == (at % cols)[None, :], to_col[None, :], 0.0), 1)
        to = (program * RANK + r) * rows
        tl.store(row_gradient + to + i, of_row.to(row_gradient.dtype.element_ty), mask=taken)
        to = (program * RANK + r) * cols
        tl.store(col_gradient + to + j, of_col.to(col_gradient.dtype.element_ty), mask=taken)
        left = tl.load(row + r * rows + i, mask=taken, other=0.0).to(tl.float32)
        for s in tl.static_range(RANK):
            right = tl.load(col + s * cols + j, mask=taken, other=0.0).to(tl.float32)
            for c in tl.static_range(CORES):
                g = tl.load(gradient + place * CORES + c, mask=taken, other=0.0).to(tl.float32)
                share = core_gradient + ((program * CORES + c) * RANK + r) * RANK + s
                tl.store(share, tl.sum(g * left * right, 0))


@triton.jit
def pair_gradient(
    gradient, row, col, core, at, pair, r, heads, rows, cols, k, RANK: tl.constexpr, CORES: tl.constexpr
):  # fmt: skip
    """What the pairs at the virtual indices `at` send to rank r of their rows and columns; nothing from k on."""
    to_row, to_col = tl.zeros(at.shape, tl.float32), tl.zeros(at.shape, tl.float32)
    for s in tl.static_range(RANK):
        right = tl.load(col + s * cols + at % cols).to(tl.float32)
        left = tl.load(row + s * rows + at // cols).to(tl.float32)
        for c in tl.static_range(CORES):
            g = tl.load(gradient + pair * CORES + c, mask=pair < k, other=0.0).to(tl.float32)
            own = core + c * heads * RANK * RANK
            to_row += g * tl.load(own + r * RANK + s).to(tl.float32) * right
            to_col += g * tl.load(own + s * RANK + r).to(tl.float32) * left
    return to_row, to_col


def tucker_topk(
    row_scores: torch.Tensor, col_scores: torch.Tensor, u: torch.Tensor, v: torch.Tensor, core: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes, types and result as `ops.tucker_topk.reference`; of tied entries the first is taken."""
    row_scores, col_scores = row_scores.contiguous(), col_scores.contiguous()
    (tokens, heads, rank, rows), cols, cores = row_scores.shape, col_scores.shape[3], core.shape[0]
    row_kept, col_kept = _best(row_scores, u, min(k, rows)), _best(col_scores, v, min(k, cols))
    scores = row_scores.new_empty((tokens, heads * k, cores))
    indices = row_scores.new_empty((tokens, heads * k), dtype=torch.int64)
    if tokens:
        pairs_kernel[(tokens * heads,)](
            row_scores, col_scores, core.contiguous(), row_kept, col_kept, scores, indices, heads, rows, cols,
            row_kept.shape[2], col_kept.shape[2], k, RANK=rank, CORES=cores, KEEP=_power(k), CHUNK=_chunk(k, k * k),
        )  # fmt: skip
    return scores, indices


def tucker_topk_gradient(
    gradient: torch.Tensor,
    indices: torch.Tensor,
    row_scores: torch.Tensor,
    col_scores: torch.Tensor,
    core: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of row_scores, col_scores and core, in their types, given that of the scores [T, H*k, M]."""
    row_scores, col_scores = row_scores.contiguous(), col_scores.contiguous()
    (tokens, heads, rank, rows), cols, cores = row_scores.shape, col_scores.shape[3], core.shape[0]
    row_gradient, col_gradient = torch.zeros_like(row_scores), torch.zeros_like(col_scores)
    shares = torch.zeros((tokens, heads, cores, rank, rank), dtype=torch.float32, device=core.device)
    k = indices.shape[1] // heads
    if tokens:
        gradient_kernel[(tokens * heads,)](
            gradient.contiguous(), indices.contiguous(), row_scores, col_scores, core.contiguous(), row_gradient,
            col_gradient, shares, heads, rows, cols, k, RANK=rank, CORES=cores, KEEP=_power(k),
            PAIRS=PAIRS,
        )  # fmt: skip
    return row_gradient, col_gradient, shares.sum(0).transpose(0, 1).to(core.dtype)


def _best(scores: torch.Tensor, factor: torch.Tensor, keep: int) -> torch.Tensor:
    """int64 [T, H, keep]."""
    tokens, heads, rank, keys = scores.shape
    indices = torch.empty((tokens, heads, keep), dtype=torch.int64, device=scores.device)
    if tokens:
        side_kernel[(tokens * heads,)](
            scores, factor.contiguous(), indices, heads, keys, keep,
            RANK=rank, KEEP=_power(keep), CHUNK=_chunk(keep, keys),
        )  # fmt: skip
    return indices


def _power(count: int) -> int:
    return int(triton.next_power_of_2(count))


def _chunk(keep: int, candidates: int) -> int:
    """At least as many as are kept, and no more than there are."""
    return max(_power(keep), min(CHUNK, _power(candidates)))
