"""The gated FFN, and mixtures of experts by com.microsoft MoE (model/ffn.py)."""

from __future__ import annotations

from ...layout import SELECTION_BIAS
from ...model.routing import NEVER
from ...spec import DecoderSpec, ExpertsSpec
from .attention import linear
from .dialect import MICROSOFT, Portable
from .routing import choose, plain, router_logits, scattered


def gated_ffn(dialect: Portable, decoder: DecoderSpec, prefix: str, x: str) -> str:
    """down(act(gate(x)) * up(x)) of the FFN whose tensors start with `prefix`."""
    gate, up = (linear(dialect, x, f"{prefix}.{part}_proj", decoder.mlp_bias) for part in ("gate", "up"))
    inner = dialect.graph.op("Mul", dialect.activation(gate, decoder.activation), up)
    return linear(dialect, inner, f"{prefix}.down_proj", decoder.mlp_bias)


def mixture(dialect: Portable, decoder: DecoderSpec, experts: ExpertsSpec, prefix: str, x: str, routed: bool) -> str:
    """The experts whose tensors start with `prefix`, of a hidden state; only what they share unless `routed`."""
    g = dialect.graph
    out = _routed(dialect, experts, prefix, x) if routed else None
    if not experts.shared_width:
        return out or x
    shared = gated_ffn(dialect, decoder, f"{prefix}.shared_expert", x)
    if experts.shared_gate:
        gate = g.op("Sigmoid", dialect.linear(x, g.weight(f"{prefix}.shared_expert_gate.weight")))
        shared = g.op("Mul", gate, shared)
    return g.op("Add", out, shared) if out else shared


def _routed(dialect: Portable, experts: ExpertsSpec, prefix: str, x: str) -> str:
    g, routing = dialect.graph, experts.routing
    flat = dialect.flat(x)
    logits, factor = _moe_logits(dialect, experts, prefix, flat)
    out = g.op(
        f"{MICROSOFT}::MoE",
        *(flat, logits, g.weight(f"export.{prefix}.experts.gate_up"), "", g.weight(f"export.{prefix}.experts.down")),
        k=routing.top_k,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        normalize_routing_weights=int(routing.normalise or not plain(routing)),
    )
    return dialect.unflat(out if factor is None else g.op("Mul", out, factor), x)


def _moe_logits(dialect: Portable, experts: ExpertsSpec, prefix: str, x: str) -> tuple[str, str | None]:
    """Logits [T, E] for MoE, which softmaxes them, and what to multiply its output by."""
    g, routing = dialect.graph, experts.routing
    logits = router_logits(dialect, x, g.weight(f"{prefix}.gate.weight"))
    if plain(routing):
        return logits, None if routing.scale == 1.0 else g.constant(routing.scale, "float32")
    chosen, weights = choose(dialect, routing, experts.count, logits, f"{prefix}.gate.{SELECTION_BIAS}")
    # MoE's softmax over these gives the weights divided by their sum, whatever the scores came from.
    logits = scattered(dialect, logits, chosen, g.op("Log", weights), NEVER)
    return logits, g.op("ReduceSum", weights, g.constant([1]), keepdims=1)
