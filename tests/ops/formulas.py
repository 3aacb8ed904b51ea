"""The operators' formulas (spec sections 2, 3 and 5) in NumPy float64, written out without any code of the package."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def sparse_lookup(table: Array, addresses: Array, scores: Array, blocks: int) -> Array:
    """[T, blocks*D]: out[t, p] = sum over k in block p of score ⊙ row, core c weighting its own D/M columns."""
    rows, width = table.shape
    tokens, slots, cores = scores.shape
    out = np.zeros((tokens, blocks, width))
    for t in range(tokens):
        for k in range(slots):
            block, row = divmod(int(addresses[t, k]), rows)
            out[t, block] += np.repeat(scores[t, k], width // cores) * table[row]
    return out.reshape(tokens, blocks * width)


def sparse_gate(table: Array, addresses: Array, x: Array, activation: str) -> Array:
    """[T, K]: act(<row, x>), or silu(<row[:P], x>) * <row[P:], x>."""
    width = x.shape[1]
    out = np.zeros(addresses.shape)
    for t, k in np.ndindex(addresses.shape):
        row = table[int(addresses[t, k]) % table.shape[0]]
        a = float(row[:width] @ x[t])
        if activation == "swiglu":
            out[t, k] = silu(a) * float(row[width:] @ x[t])
        else:
            out[t, k] = {"none": lambda a: a, "gelu": gelu, "silu": silu}[activation](a)
    return out


def silu(a: float) -> float:
    """a * sigmoid(a), without overflow."""
    return a / (1 + math.exp(-a)) if a >= 0 else a * math.exp(a) / (1 + math.exp(a))


def gelu(a: float) -> float:
    """The exact one."""
    return 0.5 * a * (1 + math.erf(a / math.sqrt(2)))


def stage_one(row: Array, weights: Array) -> Array:
    """[T, H, n]: a[i] = sum_r weights_r * s[r, i]."""
    return np.einsum("hr,thrn->thn", weights, row)


def core_scores(row: Array, col: Array, core: Array, t: int, h: int, i: int, j: int) -> Array:
    """[M]: every core's score of one pair, row[:, i]^T C_c col[:, j]."""
    return np.array([row[t, h, :, i] @ c[h] @ col[t, h, :, j] for c in core])


def best(scores: Array, k: int) -> tuple[list[int], float]:
    """Positions of the k best of a flat array, and how far the worst of them is above the best of the others."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    margin = scores[order[k - 1]] - scores[order[k]] if k < len(scores) else math.inf
    return order[:k], float(margin)


def tucker_topk(
    row: Array, col: Array, u: Array, v: Array, core: Array, k: int, t: int, h: int
) -> tuple[set[int], float]:
    """One token and head: the chosen virtual indices i*n_col + j, and the smallest selection margin of both stages."""
    n_col = col.shape[3]
    rows, row_margin = best(stage_one(row, u)[t, h], min(k, row.shape[3]))
    cols, col_margin = best(stage_one(col, v)[t, h], min(k, n_col))
    pairs = [(i, j) for i in rows for j in cols]
    totals = np.array([core_scores(row, col, core, t, h, i, j).sum() for i, j in pairs])
    kept, margin = best(totals, k)
    return {pairs[q][0] * n_col + pairs[q][1] for q in kept}, min(row_margin, col_margin, margin)
