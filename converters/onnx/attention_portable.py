"""Attention in standard operators; the mask says which keys exist, so padding may stand on either side."""

from __future__ import annotations

from functools import cached_property

from onnx import TensorProto

from ...model.rope import inverse_frequencies
from ...spec import RopeSpec
from .attention import Inputs, cache_names, project, rope_of, window_of
from .dialect import Portable

HIDDEN = -1e30  # finite, so that a padding row, which sees no key at all, stays finite too


class Standard:
    """Attention layers of one graph."""

    def __init__(self, dialect: Portable, inputs: Inputs) -> None:
        self.dialect, self.inputs, self.decoder = dialect, inputs, inputs.decoder
        self._biases: dict[int | None, str] = {}
        self._rotations: dict[RopeSpec, tuple[str, str]] = {}

    def __call__(self, layer: int, x: str) -> str:
        """A hidden state -> heads side by side, laid out as the dialect lays hidden states out."""
        g, d = self.dialect.graph, self.decoder
        q, k, v = self._projected(layer, x)
        past, present = cache_names(layer, "past_key_values"), cache_names(layer, "present")
        keys = g.op("Concat", past[0], k, out=present[0], axis=2)
        values = g.op("Concat", past[1], v, out=present[1], axis=2)
        scores = g.op("Add", self._scores(q, keys), self._bias(window_of(d, layer)))
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.op("Unsqueeze", values, g.constant([2])))
        tokens_first = g.op("Transpose", mixed, perm=[0, 3, 1, 2, 4])
        width = d.num_heads * d.value_dim
        if self.dialect.target == "ort":
            return g.op("Reshape", tokens_first, self.inputs.shape(width))
        return g.reshape(tokens_first, -1, width)

    def _projected(self, layer: int, x: str) -> tuple[str, str, str]:
        """Rotated queries and keys, and values, [B, heads, S, head_dim]."""
        d = self.decoder
        q, k, v = project(self.dialect, d, layer, x)
        q = self._rotate(layer, self._heads(q, d.num_heads))
        return q, self._rotate(layer, self._heads(k, d.num_kv_heads)), self._heads(v, d.num_kv_heads)

    def _heads(self, x: str, heads: int) -> str:
        """[B, heads, S, width of one]."""
        g = self.dialect.graph
        split = g.op("Reshape", x, self.inputs.shape(heads, -1))
        return g.op("Transpose", split, perm=[0, 2, 1, 3])

    def _rotate(self, layer: int, x: str) -> str:
        g = self.dialect.graph
        cos, sin = self._cos_sin(rope_of(self.decoder, layer))
        first, second = self._pairs(x)
        left = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
        right = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
        return g.op("Concat", left, right, axis=-1)

    def _pairs(self, x: str) -> tuple[str, str]:
        """What is rotated together: halves, or entries at even and at odd places."""
        g, half = self.dialect.graph, self.decoder.rotated_dim // 2
        if self.decoder.rope.interleaved:
            end, axis, two = g.constant([2**63 - 1]), g.constant([-1]), g.constant([2])
            return tuple(g.op("Slice", x, g.constant([start]), end, axis, two) for start in (0, 1))  # type: ignore[return-value]
        first, second = g.ops("Split", 2, x, g.constant([half, half]), axis=-1)
        return first, second

    def _scores(self, q: str, keys: str) -> str:
        """[B, kv_heads, group, S, P+S]: the heads that share a key head broadcast against it."""
        g, d = self.dialect.graph, self.decoder
        scaled = g.op("Mul", q, g.constant(d.score_scale, "float32"))
        grouped = g.op("Reshape", scaled, self._grouped)
        turned = g.op("Unsqueeze", g.op("Transpose", keys, perm=[0, 1, 3, 2]), g.constant([2]))
        return g.op("MatMul", grouped, turned)

    @cached_property
    def _grouped(self) -> str:
        g, d, i = self.dialect.graph, self.decoder, self.inputs
        heads = g.constant([d.num_kv_heads, d.num_heads // d.num_kv_heads])
        return g.op("Concat", i.batch, heads, i.length, g.constant([d.head_dim]), axis=0)

    def _cos_sin(self, rope: RopeSpec) -> tuple[str, str]:
        """[B, 1, S, rotated_dim/2] at the positions that the mask counts."""
        if rope not in self._rotations:
            g = self.dialect.graph
            inverse = inverse_frequencies(rope, self.decoder.rotated_dim)
            positions = g.op("Unsqueeze", self._positions[1], g.constant([1, 3]))
            angles = g.op("Mul", positions, g.constant(inverse, "float32"))
            cos, sin = g.op("Cos", angles), g.op("Sin", angles)
            if rope.attention_factor != 1.0:
                factor = g.constant(rope.attention_factor, "float32")
                cos, sin = g.op("Mul", cos, factor), g.op("Mul", sin, factor)
            self._rotations[rope] = cos, sin
        return self._rotations[rope]

    @cached_property
    def _positions(self) -> tuple[str, str]:
        """Positions of all keys [B, P+S] and of the new tokens [B, S], float32; padding does not count."""
        g, i = self.dialect.graph, self.inputs
        count = g.cast(g.op("CumSum", i.attention_mask, g.constant(1)), TensorProto.FLOAT)
        keys = g.op("Max", g.op("Sub", count, g.constant(1.0, "float32")), g.constant(0.0, "float32"))
        return keys, g.op("Slice", keys, i.past, g.constant([2**63 - 1]), g.constant([1]))

    def _bias(self, window: int | None) -> str:
        """0 where a query may look, float32 [B, 1, 1, S, P+S]."""
        if window not in self._biases:
            g = self.dialect.graph
            zero, hidden = g.constant(0.0, "float32"), g.constant(HIDDEN, "float32")
            self._biases[window] = g.op("Where", self._allowed(window), zero, hidden)
        return self._biases[window]

    def _allowed(self, window: int | None) -> str:
        g, i = self.dialect.graph, self.inputs
        scalar = [g.op("Squeeze", value, g.constant([0])) for value in (i.past, i.total)]
        query = g.op("Unsqueeze", g.op("Range", scalar[0], scalar[1], g.constant(1)), g.constant([1]))
        key = g.op("Range", g.constant(0), scalar[1], g.constant(1))
        causal = g.op("LessOrEqual", key, query)
        real = g.op("Unsqueeze", g.cast(i.attention_mask, TensorProto.BOOL), g.constant([1, 2, 3]))
        allowed = g.op("And", causal, real)
        return allowed if window is None else g.op("And", allowed, self._near(window))

    def _near(self, window: int) -> str:
        """Whether a key lies within the window of a query, counted in positions, bool [B, 1, 1, S, P+S]."""
        g = self.dialect.graph
        keys = g.op("Unsqueeze", self._positions[0], g.constant([1, 2, 3]))
        queries = g.op("Unsqueeze", self._positions[1], g.constant([1, 2, 4]))
        return g.op("Greater", keys, g.op("Sub", queries, g.constant(window, "float32")))
