"""Multi-head latent attention (DeepSeek-V3): keys and values are expanded from a low-rank latent of each token."""

from __future__ import annotations

import torch
from torch import nn

from ..spec import DecoderSpec, LatentSpec, NormSpec
from .attention import Context
from .linear import Linear
from .norms import Norm
from .rope import rotate


class LatentAttention(nn.Module):
    """The cache holds expanded keys and values, as other attention does: simple, and larger than the latents."""

    def __init__(self, decoder: DecoderSpec, latent: LatentSpec, layer: int) -> None:
        super().__init__()
        self.decoder, self.latent, self.layer = decoder, latent, layer
        d, norm = decoder, NormSpec("rms", latent.norm_eps)
        self.plain_dim = d.head_dim - latent.rope_dim
        if latent.query_rank is None:
            self.q_proj = Linear(d.hidden_size, d.num_heads * d.head_dim, bias=False)
        else:
            self.q_a_proj = Linear(d.hidden_size, latent.query_rank, bias=d.qkv_bias)
            self.q_a_layernorm = Norm(norm, latent.query_rank)
            self.q_b_proj = Linear(latent.query_rank, d.num_heads * d.head_dim, bias=False)
        self.kv_a_proj_with_mqa = Linear(d.hidden_size, latent.kv_rank + latent.rope_dim, bias=d.qkv_bias)
        self.kv_a_layernorm = Norm(norm, latent.kv_rank)
        self.kv_b_proj = Linear(latent.kv_rank, d.num_heads * (self.plain_dim + latent.value_dim), bias=False)
        self.o_proj = Linear(d.num_heads * latent.value_dim, d.hidden_size, bias=d.attention_output_bias)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """x [B, S, d] -> [B, S, d]."""
        cos, sin = context.sliding_rotation if self.layer in self.decoder.sliding_layers else context.rotation
        interleaved = self.decoder.rope.interleaved
        q_plain, q_rotated = torch.split(self._queries(x), [self.plain_dim, self.latent.rope_dim], dim=-1)
        latent, k_rotated = torch.split(self.kv_a_proj_with_mqa(x), [self.latent.kv_rank, self.latent.rope_dim], dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.decoder.num_heads, -1))
        k_plain, v = torch.split(expanded.transpose(1, 2), [self.plain_dim, self.latent.value_dim], dim=-1)
        k_rotated = rotate(k_rotated[:, None], cos, sin, interleaved).expand(-1, self.decoder.num_heads, -1, -1)
        q = torch.cat((q_plain, rotate(q_rotated, cos, sin, interleaved)), dim=-1)
        k = torch.cat((k_plain, k_rotated), dim=-1)
        out: torch.Tensor = self.o_proj(context.attend(self.decoder, self.layer, q, k, v))
        return out

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        """[B, heads, S, head_dim]."""
        low_rank = self.latent.query_rank is not None
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if low_rank else self.q_proj(x)
        heads: torch.Tensor = q.unflatten(-1, (self.decoder.num_heads, -1)).transpose(1, 2)
        return heads
