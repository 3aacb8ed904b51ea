"""Attention: queries, keys and values for both targets, and which of the two forms computes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from onnx import TensorProto

from ...spec import DecoderSpec, RopeSpec
from .dialect import Portable
from .graph import Graph


@dataclass
class Inputs:
    """The graph inputs that attention reads, and values that all layers share (made when first asked for)."""

    graph: Graph
    decoder: DecoderSpec
    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"

    @cached_property
    def batch(self) -> str:
        """B, int64 [1]."""
        return self.graph.size(self.input_ids, 0)

    @cached_property
    def length(self) -> str:
        """S, int64 [1]."""
        return self.graph.size(self.input_ids, 1)

    @cached_property
    def past(self) -> str:
        """P, int64 [1]."""
        return self.graph.size("past_key_values.0.key", 2)

    @cached_property
    def total(self) -> str:
        """P + S, int64 [1]."""
        return self.graph.op("Add", self.past, self.length)

    @cached_property
    def _shapes(self) -> dict[tuple[int, ...], str]:
        return {}

    def shape(self, *tail: int) -> str:
        """The shape [B, S, *tail], int64."""
        if tail not in self._shapes:
            self._shapes[tail] = self.graph.op("Concat", self.batch, self.length, self.graph.constant(tail), axis=0)
        return self._shapes[tail]

    def kv_shapes(self, tokens: str) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
        """Shapes of a layer's key and value caches."""
        d = self.decoder
        keys, values = (("batch_size", d.num_kv_heads, tokens, width) for width in (d.head_dim, d.value_dim))
        return keys, values


def cache_names(layer: int, prefix: str) -> tuple[str, str]:
    """Names of a layer's key and value cache tensors; `prefix` is past_key_values or present."""
    return f"{prefix}.{layer}.key", f"{prefix}.{layer}.value"


def declare_cache(inputs: Inputs) -> None:
    """Add past_key_values.{i} inputs and present.{i} outputs, float32 [B, kv_heads, tokens, head_dim]."""
    before, after = inputs.kv_shapes("past_sequence_length"), inputs.kv_shapes("total_sequence_length")
    for layer in range(inputs.decoder.num_layers):
        for name, shape in zip(cache_names(layer, "past_key_values"), before, strict=True):
            inputs.graph.add_input(name, TensorProto.FLOAT, shape)
        for name, shape in zip(cache_names(layer, "present"), after, strict=True):
            inputs.graph.add_output(name, TensorProto.FLOAT, shape)


def linear(dialect: Portable, x: str, name: str, bias: bool) -> str:
    """The checkpoint's linear layer `name`."""
    g = dialect.graph
    added = g.weight(f"{name}.bias") if bias else None
    if g.holds(f"{name}.weight_scales"):
        return dialect.linear_codes(x, *stored_codes(g, [name]), added)
    return dialect.linear(x, g.weight(f"{name}.weight"), added)


def stored_codes(graph: Graph, names: Sequence[str]) -> tuple[str, str, tuple[int, int, int]]:
    """Codes and scales of linear layers whose outputs stand side by side, and the codes' shape [out, blocks, bytes]."""
    parts = [[graph.stored(f"{name}.weight{kind}") for name in names] for kind in ("", "_scales")]
    # Constant: a runtime concatenates once, when it loads the model.
    codes, scales = (part[0] if len(part) == 1 else graph.op("Concat", *part, axis=0) for part in parts)
    shapes = [graph.shape(f"{name}.weight") for name in names]
    return codes, scales, (sum(shape[0] for shape in shapes), shapes[0][1], shapes[0][2])


def project(dialect: Portable, decoder: DecoderSpec, layer: int, x: str) -> tuple[str, str, str]:
    """Queries, keys and values with heads side by side on the last axis, normalised and clipped as in the model."""
    prefix = f"model.layers.{layer}.self_attn"
    out = []
    for part, heads in (("q", decoder.num_heads), ("k", decoder.num_kv_heads), ("v", decoder.num_kv_heads)):
        with dialect.graph.scope(part):
            y = linear(dialect, x, f"{prefix}.{part}_proj", decoder.qkv_bias)
            out.append(_conditioned(dialect, decoder, y, part, f"{prefix}.{part}_norm", heads))
    return out[0], out[1], out[2]


def project_packed(dialect: Portable, decoder: DecoderSpec, layer: int, x: str) -> str:
    """Queries, keys and values side by side on the last axis, by one multiplication; not for models with a q/k norm."""
    g, prefix = dialect.graph, f"model.layers.{layer}.self_attn"

    def together(kind: str) -> str:
        # Constant: a runtime concatenates once, when it loads the model.
        return g.op("Concat", *(g.weight(f"{prefix}.{part}_proj.{kind}") for part in "qkv"), axis=0)

    bias = together("bias") if decoder.qkv_bias else None
    if decoder.dense != "float":
        y = dialect.linear_codes(x, *stored_codes(g, [f"{prefix}.{part}_proj" for part in "qkv"]), bias)
    else:
        y = dialect.linear(x, together("weight"), bias)
    return _clipped(dialect, decoder, y)


def _conditioned(dialect: Portable, decoder: DecoderSpec, y: str, part: str, norm: str, heads: int) -> str:
    g, width, normed = dialect.graph, decoder.head_dim, part != "v"
    if normed and decoder.qk_norm == "projection":
        y = dialect.norm(y, decoder.norm, norm, heads * width)
    y = _clipped(dialect, decoder, y)
    if normed and decoder.qk_norm == "head":
        return dialect.norm(g.reshape(y, -1, heads, width), decoder.norm, norm, width)
    return y


def _clipped(dialect: Portable, decoder: DecoderSpec, y: str) -> str:
    if decoder.clip_qkv is None:
        return y
    low, high = (dialect.graph.constant(sign * decoder.clip_qkv, "float32") for sign in (-1, 1))
    return dialect.graph.op("Clip", y, low, high)


def window_of(decoder: DecoderSpec, layer: int) -> int | None:
    """The sliding window of a layer, None where it sees everything."""
    return decoder.sliding_window if layer in decoder.sliding_layers else None


def rope_of(decoder: DecoderSpec, layer: int) -> RopeSpec:
    """The positions of a layer: sliding ones may have their own."""
    return decoder.sliding_rope if decoder.sliding_rope and layer in decoder.sliding_layers else decoder.rope
