"""What must hold of an operator's outputs on a case, whoever computed them: the formula in float64, within a bound."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ultramem_deploy.ops import sparse_gate

from . import formulas
from .backends import Backend
from .cases import Case

EPS32 = 2.0**-24
# Half a unit in the last place of float16, and of its smallest numbers.
EPS16, TINY16 = 2.0**-11, 2.0**-25
# Selections closer than this in float64 may come out either way in float32.
MARGIN = 1e-4
# onnx's GatherElements is written with numpy.choose, which takes fewer arrays than this.
NUMPY_CHOICES = 64


def allowed(case: Case, expected: np.ndarray, magnitude: np.ndarray, terms: int) -> np.ndarray:
    """The error that float32 sums of `terms` terms of this total magnitude may have, and one rounding to the output.

    Four roundings a term: each product and each addition rounds, and a tree of partial sums or a body that multiplies
    first may round twice as often as a chain of fused ones.
    """
    error = 4 * (terms + 2) * EPS32 * magnitude + 1e-30
    return error if case.dtype == torch.float32 else error + EPS16 * np.abs(expected) + TINY16


def check_sparse_lookup(case: Case, runners: Mapping[str, Backend]) -> None:
    """Every runner's output."""
    x, blocks = case.exact(), case.attributes["blocks"]
    expected = formulas.sparse_lookup(x["table"], x["addresses"], x["scores"], blocks)
    magnitude = formulas.sparse_lookup(np.abs(x["table"]), x["addresses"], np.abs(x["scores"]), blocks)
    bound = allowed(case, expected, magnitude, x["addresses"].shape[1])
    for name, run in runners.items():
        (output,) = run(case)
        assert output.shape == expected.shape, name
        assert (np.abs(output.astype(np.float64) - expected) <= bound).all(), name


def check_sparse_gate(case: Case, runners: Mapping[str, Backend]) -> None:
    """Every runner's output."""
    x = case.exact()
    width, activation = x["x"].shape[1], sparse_gate.ACTIVATIONS[case.attributes["activation"]]
    expected = formulas.sparse_gate(x["table"], x["addresses"], x["x"], activation)
    first = formulas.sparse_gate(np.abs(x["table"][:, :width]), x["addresses"], np.abs(x["x"]), "none")
    last = formulas.sparse_gate(np.abs(x["table"][:, -width:]), x["addresses"], np.abs(x["x"]), "none")
    # No activation is steeper than 1.2; in swiglu an error of either factor is multiplied by the other.
    magnitude = 2.4 * first * last if activation == "swiglu" else 1.2 * first
    bound = allowed(case, expected, magnitude, width)
    for name, run in runners.items():
        (gate,) = run(case)
        assert gate.shape == expected.shape, name
        assert (np.abs(gate.astype(np.float64) - expected) <= bound).all(), name


def check_tucker_topk(case: Case, runners: Mapping[str, Backend]) -> None:
    """Every runner's outputs; the chosen set where float64 decides it clearly."""
    x, k = case.exact(), case.attributes["k"]
    tokens, heads = x["row_scores"].shape[:2]
    truth = {(t, h): formulas.tucker_topk(*x.values(), k, t, h) for t in range(tokens) for h in range(heads)}
    for name, run in runners.items():
        if name == "onnx reference" and case.attributes["k"] ** 2 >= NUMPY_CHOICES:
            continue
        scores, indices = run(case)
        assert scores.shape == (tokens, heads * k, len(x["core"])) and indices.shape == (tokens, heads * k), name
        for (t, h), (expected, margin) in truth.items():
            part = slice(h * k, (h + 1) * k)
            check_head(name, case, x, (t, h), scores[t, part].astype(np.float64), indices[t, part])
            if margin > MARGIN:
                assert set(indices[t, part].tolist()) == expected, name


def check_head(
    name: str, case: Case, x: dict[str, np.ndarray], at: tuple[int, int], scores: np.ndarray, indices: np.ndarray
) -> None:
    """What holds with ties too: distinct legal pairs, their own scores, best first, and no better pair left out."""
    t, h = at
    row, col, core = x["row_scores"], x["col_scores"], x["core"]
    n_row, n_col = row.shape[3], col.shape[3]
    assert len(set(indices.tolist())) == len(indices), name
    assert (indices >= 0).all() and (indices < n_row * n_col).all(), name
    pairs = [divmod(int(index), n_col) for index in indices]
    expected = np.array([formulas.core_scores(row, col, core, t, h, i, j) for i, j in pairs])
    magnitude = np.array([formulas.core_scores(*map(np.abs, (row, col, core)), t, h, i, j) for i, j in pairs])
    assert (np.abs(scores - expected) <= allowed(case, expected, magnitude, row.shape[2] ** 2)).all(), name
    totals = expected.sum(1)
    assert (np.diff(totals) <= MARGIN).all(), name
    for side, weights, chosen in ((row, x["u"], {i for i, _ in pairs}), (col, x["v"], {j for _, j in pairs})):
        stage = np.sort(formulas.stage_one(side, weights)[t, h])[::-1]
        worst_kept = stage[min(case.attributes["k"], len(stage)) - 1]
        assert all(formulas.stage_one(side, weights)[t, h][i] >= worst_kept - MARGIN for i in chosen), name
