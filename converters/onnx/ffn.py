"""The gated FFN, and mixtures of experts by com.microsoft MoE (model/ffn.py)."""

from __future__ import annotations

from ...spec import DecoderSpec, ExpertsSpec
from .attention import linear
from .dialect import MICROSOFT, Portable

NEVER = -1e30  # a router logit whose softmax is exactly 0


def gated_ffn(dialect: Portable, decoder: DecoderSpec, prefix: str, x: str) -> str:
    """down(act(gate(x)) * up(x)) of the FFN whose tensors start with `prefix`."""
    gate, up = (linear(dialect, x, f"{prefix}.{part}_proj", decoder.mlp_bias) for part in ("gate", "up"))
    inner = dialect.graph.op("Mul", dialect.activation(gate, decoder.activation), up)
    return linear(dialect, inner, f"{prefix}.down_proj", decoder.mlp_bias)


def mixture(dialect: Portable, decoder: DecoderSpec, experts: ExpertsSpec, prefix: str, x: str) -> str:
    """The mixture of experts whose tensors start with `prefix`, of a hidden state."""
    g = dialect.graph
    flat = dialect.flat(x)
    logits, factor = _routed(dialect, experts, prefix, flat)
    out = g.op(
        f"{MICROSOFT}::MoE",
        *(flat, logits, g.weight(f"export.{prefix}.experts.gate_up"), "", g.weight(f"export.{prefix}.experts.down")),
        k=experts.top_k,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        normalize_routing_weights=int(experts.normalise or experts.scoring == "sigmoid"),
    )
    out = out if factor is None else g.op("Mul", out, factor)
    out = dialect.unflat(out, x)
    if not experts.shared_width:
        return out
    shared = gated_ffn(dialect, decoder, f"{prefix}.shared_expert", x)
    if experts.shared_gate:
        gate = g.op("Sigmoid", dialect.linear(x, g.weight(f"{prefix}.shared_expert_gate.weight")))
        shared = g.op("Mul", gate, shared)
    return g.op("Add", out, shared)


def _routed(dialect: Portable, experts: ExpertsSpec, prefix: str, x: str) -> tuple[str, str | None]:
    """Router logits [T, experts] for MoE, which softmaxes them, and what to multiply its output by."""
    g = dialect.graph
    logits = g.op("MatMul", x, g.op("Transpose", g.weight(f"{prefix}.gate.weight"), perm=[1, 0]))
    if experts.scoring == "softmax" and experts.groups == 1 and not experts.selection_bias:
        return logits, None if experts.scale == 1.0 else g.constant(experts.scale, "float32")
    scores = g.op("Sigmoid", logits) if experts.scoring == "sigmoid" else g.op("Softmax", logits, axis=-1)
    chosen = _chosen(dialect, experts, prefix, scores)
    weights = g.op("GatherElements", scores, chosen, axis=1)
    never = g.op("Expand", g.constant(NEVER, "float32"), g.op("Shape", scores))
    # MoE's softmax over these gives the weights divided by their sum, whatever the scores came from.
    return g.op("ScatterElements", never, chosen, g.op("Log", weights), axis=1), _factor(dialect, experts, weights)


def _factor(dialect: Portable, experts: ExpertsSpec, weights: str) -> str | None:
    g = dialect.graph
    scale = None if experts.scale == 1.0 else g.constant(experts.scale, "float32")
    if experts.normalise:
        return scale
    total = g.op("ReduceSum", weights, g.constant([1]), keepdims=1)
    return total if scale is None else g.op("Mul", total, scale)


def _chosen(dialect: Portable, experts: ExpertsSpec, prefix: str, scores: str) -> str:
    """Experts int64 [T, k], by score and bias, from the best groups."""
    g = dialect.graph
    choice = (
        g.op("Add", scores, g.weight(f"{prefix}.gate.e_score_correction_bias")) if experts.selection_bias else scores
    )
    if experts.groups > 1:
        grouped = g.reshape(choice, -1, experts.groups, experts.count // experts.groups)
        best = g.ops("TopK", 2, grouped, g.constant([2]), axis=-1)[0]
        totals = g.op("ReduceSum", best, g.constant([-1]), keepdims=0)
        groups = g.ops("TopK", 2, totals, g.constant([experts.top_groups]), axis=-1)[1]
        never = g.op("Expand", g.constant(NEVER, "float32"), g.op("Shape", totals))
        zeros = g.op("Expand", g.constant(0.0, "float32"), g.op("Shape", groups))
        barred = g.op("Unsqueeze", g.op("ScatterElements", never, groups, zeros, axis=1), g.constant([2]))
        choice = g.reshape(g.op("Add", grouped, barred), -1, experts.count)
    return g.ops("TopK", 2, choice, g.constant([experts.top_k]), axis=-1)[1]
