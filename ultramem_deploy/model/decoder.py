"""The decoder: transformer blocks, and memory layers that read one block's FFN input and write after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from ..layout import addressed_cores, block_norm_names, block_norms
from ..ops import native
from ..ops.native_linear import linear
from ..spec import DecoderSpec, ModelSpec
from .attention import Attention, Context
from .cache import KVCache
from .ffn import feed_forward
from .latent_attention import LatentAttention
from .linear import Linear
from .memory import MemoryLayer, ValueTable
from .norms import Norm
from .rope import cos_sin


class Block(nn.Module):
    """One transformer block; norms stand before (Llama), after (OLMo2) or around (Gemma) attention and FFN.

    A block may have no FFN; a memory layer then reads what it would have read.
    """

    def __init__(self, decoder: DecoderSpec, layer: int) -> None:
        super().__init__()
        latent = decoder.latent
        self.self_attn = LatentAttention(decoder, latent, layer) if latent else Attention(decoder, layer)
        self.mlp = feed_forward(decoder, layer)
        self.norms = block_norms(decoder, layer)
        for name in block_norm_names(decoder, layer):
            self.add_module(name, Norm(decoder.norm, decoder.hidden_size))

    def forward(self, x: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, S, d] -> the block's output and what its FFN read (what a memory layer reads), both [B, S, d]."""
        attended = self.self_attn(self._normed(self.norms.attention_input, x), context)
        x = x + self._normed(self.norms.attention_output, attended)
        ffn_input = self._normed(self.norms.ffn_input, x)
        if self.mlp is None:
            return x, ffn_input
        return x + self._normed(self.norms.ffn_output, self.mlp(ffn_input)), ffn_input

    def _normed(self, name: str | None, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = getattr(self, name)(x) if name else x
        return out


class Trunk(nn.Module):
    def __init__(self, decoder: DecoderSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(decoder.vocab_size, decoder.hidden_size)
        self.layers = nn.ModuleList(Block(decoder, i) for i in range(decoder.num_layers))
        self.norm = Norm(decoder.norm, decoder.hidden_size)


class UltraMemModel(nn.Module):
    """A decoder-only language model with memory layers; parameter names are those of the canonical checkpoint."""

    overlap: bool = True
    """Whether rows on a disk are asked for where a memory layer reads, and looked up where it writes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Trunk(spec.decoder)
        self.memory = nn.ModuleList(MemoryLayer(layer, spec) for layer in spec.memory)
        self.tables = nn.ModuleDict(
            {name: ValueTable(table, addressed_cores(spec, name)) for name, table in spec.tables.items()}
        )
        if not spec.decoder.tie_embeddings:
            self.lm_head = Linear(spec.decoder.hidden_size, spec.decoder.vocab_size, bias=spec.decoder.lm_head_bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        """Logits [B, S, V] of input_ids [B, S]; with `logits_to_keep` only those of the last positions.

        attention_mask: int or bool [B, P+S], 0 for padding, P the tokens in `cache`, which the call extends.
        """
        x = self.embed(input_ids)
        context = self.context(input_ids, attention_mask, cache)
        x = self.blocks(x, context, 0, len(self.model.layers))
        if cache is not None:
            cache.advance(input_ids.shape[1])
        return self.head(x[:, -logits_to_keep:])

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The first block's input [B, S, d] of input_ids [B, S]."""
        x: torch.Tensor = self.model.embed_tokens(input_ids)
        scale = self.spec.decoder.embedding_scale
        # Rounded as the embedding is: what transformers multiplies by.
        return x if scale is None else x * torch.tensor(scale, dtype=x.dtype, device=x.device)

    @property
    def memory_layers(self) -> list[MemoryLayer]:
        """The memory layers, in the order of the description."""
        return [layer for layer in self.memory if isinstance(layer, MemoryLayer)]

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Final norm and output projection: hidden [B, S, d] -> logits [B, S, V]."""
        x = self.model.norm(x)
        if "lm_head" not in self._modules:
            return linear(x, self.model.embed_tokens.weight)
        logits: torch.Tensor = self.lm_head(x)
        return logits

    def blocks(self, x: torch.Tensor, context: Context, start: int, stop: int) -> torch.Tensor:
        """Run blocks [start, stop); a memory layer must read and write within the range."""
        pending: dict[int, Callable[[], torch.Tensor]] = {}
        for index in range(start, stop):
            x, ffn_input = self.model.layers[index](x, context)
            for number, layer in enumerate(self.spec.memory):
                if layer.read_block == index:
                    pending[number] = self._remember(number, ffn_input)
                if layer.write_block == index:
                    x = x + pending.pop(number)().view_as(x).to(x.dtype)
        return x

    def _remember(self, number: int, ffn_input: torch.Tensor) -> Callable[[], torch.Tensor]:
        """What gives a memory layer's output [T, d] where it writes: by then, rows on a disk are on their way."""
        layer = cast(MemoryLayer, self.memory[number])
        table = cast(ValueTable, self.tables[self.spec.memory[number].table])
        hidden = ffn_input.flatten(0, 1)
        if self.overlap and native.is_read_ahead(table.values):
            choices = layer.choose(hidden, table)
            return lambda: layer.look_up(choices, table)
        out: torch.Tensor = layer(hidden, table)
        return lambda: out

    def context(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> Context:
        """Positions and masks that every block of one forward pass shares; arguments as in `forward`."""
        batch, length = input_ids.shape
        past = cache.length if cache is not None else 0
        if attention_mask is None:
            positions = torch.arange(past, past + length, device=input_ids.device).expand(batch, length)
        else:
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        d = self.spec.decoder
        dtype = self.model.embed_tokens.weight.dtype  # cast once, not in every layer
        rotation = cos_sin(d.rope, d.rotated_dim, positions, dtype)
        sliding_rotation = cos_sin(d.sliding_rope, d.rotated_dim, positions, dtype) if d.sliding_rope else rotation
        plain = attention_mask is None and past == 0
        mask = None if plain else _causal_mask(length, past, attention_mask, None, input_ids.device)
        window = d.sliding_window if d.sliding_layers else None
        sliding = _causal_mask(length, past, attention_mask, window, input_ids.device) if window else None
        return Context(rotation, sliding_rotation, mask, sliding, cache)


def _causal_mask(
    length: int, past: int, attention_mask: torch.Tensor | None, window: int | None, device: torch.device
) -> torch.Tensor:
    """bool [B or 1, 1, S, P+S]: True where a query sees a key."""
    query = torch.arange(past, past + length, device=device)[:, None]
    key = torch.arange(past + length, device=device)[None, :]
    allowed = key <= query
    if window is not None:
        allowed = allowed & (key > query - window)
    if attention_mask is None:
        return allowed[None, None]
    return allowed[None, None] & attention_mask.bool()[:, None, None, :]
