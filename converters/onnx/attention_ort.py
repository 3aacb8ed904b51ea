"""Attention by com.microsoft GroupQueryAttention, which rotates, appends to the cache and masks by sequence lengths.

The attention mask counts here: a row's sum is its number of tokens, so padding stands on the right. The cache of a
padded row is packed: the next token overwrites the padding.
"""

from __future__ import annotations

from functools import cached_property

from onnx import TensorProto

from .attention import Inputs, cache_names, project, project_packed, window_of
from .dialect import MICROSOFT, Portable


class GroupQuery:
    """Attention layers of one graph."""

    def __init__(self, dialect: Portable, inputs: Inputs) -> None:
        self.dialect, self.inputs, self.decoder = dialect, inputs, inputs.decoder

    def __call__(self, layer: int, x: str) -> str:
        """x [B, S, d] -> heads side by side [B, S, num_heads*head_dim]."""
        g, d = self.dialect.graph, self.decoder
        q, k, v = self._projected(layer, x)
        lengths, total = self._lengths
        sliding = d.sliding_rope is not None and layer in d.sliding_layers
        caches = (g.stored(f"export.{'sliding_rope' if sliding else 'rope'}.{part}") for part in ("cos", "sin"))
        return g.ops(
            f"{MICROSOFT}::GroupQueryAttention",
            3,
            *(q, k, v, *cache_names(layer, "past_key_values"), lengths, total, *caches),
            out=[f"layers.{layer}.attention.heads", *cache_names(layer, "present")],
            num_heads=d.num_heads,
            kv_num_heads=d.num_kv_heads,
            do_rotary=1,
            rotary_interleaved=int(d.rope.interleaved),
            scale=d.score_scale,
            local_window_size=window_of(d, layer) or -1,
        )[0]

    def _projected(self, layer: int, x: str) -> tuple[str, str, str]:
        """Queries, keys and values [B, S, heads*head_dim]; all in the first and "" for the others where they can be."""
        g, d = self.dialect.graph, self.decoder
        if d.qk_norm == "none":
            return project_packed(self.dialect, d, layer, x), "", ""
        q, k, v = project(self.dialect, d, layer, x)
        if d.qk_norm == "head":
            q = g.op("Reshape", q, self.inputs.shape(d.num_heads * d.head_dim))
            k = g.op("Reshape", k, self.inputs.shape(d.num_kv_heads * d.head_dim))
        return q, k, v

    @cached_property
    def _lengths(self) -> tuple[str, str]:
        """Tokens of each row less one, int32 [B], and the mask's width, int32 scalar."""
        g, mask = self.dialect.graph, self.inputs.attention_mask
        tokens = g.op("ReduceSum", mask, g.constant([1]), keepdims=0)
        lengths = g.cast(g.op("Sub", tokens, g.constant(1)), TensorProto.INT32)
        width = g.op("Gather", g.op("Shape", mask), g.constant(1), axis=0)
        return lengths, g.cast(width, TensorProto.INT32)
