"""Multi-head latent attention in standard operators (model/latent_attention.py); the cache holds expanded heads."""

from __future__ import annotations

from ...spec import LatentSpec, NormSpec
from .attention import Inputs, linear
from .attention_portable import Standard
from .dialect import Portable


class Latent(Standard):
    """Attention layers of one graph."""

    def __init__(self, dialect: Portable, inputs: Inputs) -> None:
        super().__init__(dialect, inputs)
        if inputs.decoder.latent is None:
            raise ValueError("a decoder without latent attention")
        self.latent: LatentSpec = inputs.decoder.latent
        self.plain_dim = inputs.decoder.head_dim - self.latent.rope_dim

    def _projected(self, layer: int, x: str) -> tuple[str, str, str]:
        g, d, latent = self.dialect.graph, self.decoder, self.latent
        prefix = f"model.layers.{layer}.self_attn"
        q_plain, q_turned = self._split(self._heads(self._queries(prefix, x), d.num_heads), latent.rope_dim)
        compressed = linear(self.dialect, x, f"{prefix}.kv_a_proj_with_mqa", d.qkv_bias)
        sizes = g.constant([latent.kv_rank, latent.rope_dim])
        low, k_turned = g.ops("Split", 2, compressed, sizes, axis=-1)
        normed = self._norm(f"{prefix}.kv_a_layernorm", low, latent.kv_rank)
        expanded = self._heads(linear(self.dialect, normed, f"{prefix}.kv_b_proj", False), d.num_heads)
        k_plain, v = self._split(expanded, latent.value_dim)
        # One rotated part for all heads.
        shared = self._rotate(layer, self._heads(k_turned, 1))
        shape = g.op("Concat", g.size(k_plain, 0), g.size(k_plain, 1), g.size(k_plain, 2), g.size(shared, 3), axis=0)
        k = g.op("Concat", k_plain, g.op("Expand", shared, shape), axis=-1)
        return g.op("Concat", q_plain, self._rotate(layer, q_turned), axis=-1), k, v

    def _queries(self, prefix: str, x: str) -> str:
        if self.latent.query_rank is None:
            return linear(self.dialect, x, f"{prefix}.q_proj", False)
        low = linear(self.dialect, x, f"{prefix}.q_a_proj", self.decoder.qkv_bias)
        normed = self._norm(f"{prefix}.q_a_layernorm", low, self.latent.query_rank)
        return linear(self.dialect, normed, f"{prefix}.q_b_proj", False)

    def _norm(self, name: str, x: str, width: int) -> str:
        return self.dialect.norm(x, NormSpec("rms", self.latent.norm_eps), name, width)

    def _split(self, heads: str, tail: int) -> tuple[str, str]:
        """A head's plain part and the `tail` entries behind it."""
        g = self.dialect.graph
        first, second = g.ops("Split", 2, heads, g.constant([self.plain_dim, tail]), axis=-1)
        return first, second
