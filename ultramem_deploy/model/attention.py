"""Grouped-query attention with rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..ops import native_attention
from ..spec import DecoderSpec
from .cache import KVCache
from .linear import Linear
from .norms import Norm
from .rope import rotate

FEW = 128
"""For one position on a CPU without the native kernel, two products of matrices take a half to a seventh of
scaled_dot_product_attention's time: in float32 up to so many places, in bfloat16 always, where nothing is copied
(benchmarks/NOTES.md)."""

Rotation = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Context:
    """What every attention layer of one forward pass shares.

    rotation, sliding_rotation: of `rope.cos_sin` [B, 1, S, rotated_dim]; mask, sliding_mask: bool [B, 1, S, P+S],
    True where a query may look, or None for plain causal attention without a past.
    """

    rotation: Rotation
    sliding_rotation: Rotation
    mask: torch.Tensor | None
    sliding_mask: torch.Tensor | None
    cache: KVCache | None

    def attend(
        self, decoder: DecoderSpec, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Rotated queries and keys, and values, [B, heads, S, width] -> heads side by side [B, S, heads*value_dim]."""
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)
        mask = self.sliding_mask if layer in decoder.sliding_layers else self.mask
        scale = decoder.score_scale
        places = k.shape[2]
        if q.shape[2] == 1 and native_attention.usable(q, k, v, mask):
            return native_attention.one_position(q, k, v, mask, scale).flatten(1)[:, None]
        if q.shape[2] == 1 and q.device.type == "cpu" and (places <= FEW or q.dtype == torch.bfloat16):
            if self.cache is not None:
                k, v = self.cache.buffers(layer, k, v)
            return one_position(q, k, v, places, mask, scale).flatten(1)[:, None]
        groups = decoder.num_heads // decoder.num_kv_heads
        if groups > 1:  # repeat_interleave copies even where it repeats nothing
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        return out.transpose(1, 2).flatten(2)


def one_position(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, places: int, mask: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Queries [B, heads, 1, width] over the first `places` of [B, kv_heads, P, width]: [B, heads, value width].

    A group's heads go together; places behind count for nothing if they are finite. As transformers' eager attention
    rounds: scores in the dtype of `q`, their softmax in float32.
    """
    batch, heads, _, width = q.shape
    # Products of strided bfloat16 matrices copy them, which takes longer than reading places for nothing.
    k, v = k.contiguous(), v.contiguous()
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], width)
    scores = (grouped @ k.transpose(2, 3))[..., :places].float() * (width**-0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.pad(scores.softmax(-1).to(v.dtype), (0, v.shape[2] - places))
    return (weights @ v).flatten(1, 2)


class Attention(nn.Module):
    def __init__(self, decoder: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.decoder, self.layer = decoder, layer
        q_size, kv_size = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
        self.q_proj = Linear(decoder.hidden_size, q_size, bias=decoder.qkv_bias)
        self.k_proj = Linear(decoder.hidden_size, kv_size, bias=decoder.qkv_bias)
        self.v_proj = Linear(decoder.hidden_size, kv_size, bias=decoder.qkv_bias)
        self.o_proj = Linear(q_size, decoder.hidden_size, bias=decoder.attention_output_bias)
        if decoder.qk_norm != "none":
            per_head = decoder.qk_norm == "head"
            self.q_norm = Norm(decoder.norm, decoder.head_dim if per_head else q_size)
            self.k_norm = Norm(decoder.norm, decoder.head_dim if per_head else kv_size)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """x [B, S, d] -> [B, S, d]."""
        q, k, v = self._project(x)
        cos, sin = context.sliding_rotation if self.layer in self.decoder.sliding_layers else context.rotation
        q, k = (rotate(t, cos, sin, self.decoder.rope.interleaved) for t in (q, k))
        out: torch.Tensor = self.o_proj(context.attend(self.decoder, self.layer, q, k, v))
        return out

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [B, heads, S, head_dim], normalised and clipped as the source model does it."""
        d = self.decoder
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if d.qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        if d.clip_qkv is not None:
            q, k, v = (t.clamp(-d.clip_qkv, d.clip_qkv) for t in (q, k, v))
        q, k, v = (t.unflatten(-1, (-1, d.head_dim)) for t in (q, k, v))
        if d.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
