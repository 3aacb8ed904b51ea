"""Choosing experts, or rows of a memory, in standard operators (model/routing.py)."""

from __future__ import annotations

from ...model.routing import NEVER
from ...spec import RoutingSpec
from .dialect import Portable


def plain(routing: RoutingSpec) -> bool:
    """Whether a softmax and its largest entries are all there is."""
    return routing.scoring == "softmax" and routing.groups == 1 and not routing.selection_bias


def router_logits(dialect: Portable, x: str, weight: str) -> str:
    """[T, E] of x [T, d] and weight [E, d]."""
    g = dialect.graph
    return g.op("MatMul", x, g.op("Transpose", weight, perm=[1, 0]))


def choose(dialect: Portable, routing: RoutingSpec, count: int, logits: str, bias: str) -> tuple[str, str]:
    """logits [T, E] -> experts int64 [T, k] and their weights [T, k]; `bias` names the selection bias's tensor."""
    g = dialect.graph
    scores = g.op("Sigmoid", logits) if routing.scoring == "sigmoid" else g.op("Softmax", logits, axis=-1)
    choice = g.op("Add", scores, g.weight(bias)) if routing.selection_bias else scores
    if routing.groups > 1:
        choice = _within_groups(dialect, routing, count, choice)
    chosen = g.ops("TopK", 2, choice, g.constant([routing.top_k]), axis=-1)[1]
    weights = g.op("GatherElements", scores, chosen, axis=1)
    if routing.normalise:
        weights = g.op("Div", weights, g.op("ReduceSum", weights, g.constant([1]), keepdims=1))
    return chosen, weights if routing.scale == 1.0 else g.op("Mul", weights, g.constant(routing.scale, "float32"))


def scattered(dialect: Portable, like: str, places: str, values: str, rest: float) -> str:
    """A tensor shaped as `like` [T, n]: `values` [T, k] at columns `places` [T, k], `rest` elsewhere."""
    g = dialect.graph
    filled = g.op("Expand", g.constant(rest, "float32"), g.op("Shape", like))
    return g.op("ScatterElements", filled, places, values, axis=1)


def _within_groups(dialect: Portable, routing: RoutingSpec, count: int, choice: str) -> str:
    """`choice` [T, E], far below everything outside the best groups."""
    g = dialect.graph
    grouped = g.reshape(choice, -1, routing.groups, count // routing.groups)
    best = g.ops("TopK", 2, grouped, g.constant([2]), axis=-1)[0]
    totals = g.op("ReduceSum", best, g.constant([-1]), keepdims=0)
    groups = g.ops("TopK", 2, totals, g.constant([routing.top_groups]), axis=-1)[1]
    zeros = g.op("Expand", g.constant(0.0, "float32"), g.op("Shape", groups))
    barred = g.op("Unsqueeze", scattered(dialect, totals, groups, zeros, NEVER), g.constant([2]))
    return g.reshape(g.op("Add", grouped, barred), -1, count)
