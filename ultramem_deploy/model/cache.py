"""Keys and values of the tokens already seen."""

from __future__ import annotations

import torch

from ..spec import DecoderSpec


class KVCache:
    """Per layer [B, kv_heads, capacity, head_dim] for keys and for values; capacity doubles when it is full."""

    def __init__(self, decoder: DecoderSpec) -> None:
        self.length = 0
        self._keys: list[torch.Tensor | None] = [None] * decoder.num_layers
        self._values: list[torch.Tensor | None] = [None] * decoder.num_layers

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add [B, kv_heads, S, head_dim] after `length` tokens; returns views of everything held.

        `advance` moves `length` once all layers have appended.
        """
        end = self.length + keys.shape[2]
        self._keys[layer] = _grown(self._keys[layer], keys, self.length, end)
        self._values[layer] = _grown(self._values[layer], values, self.length, end)
        held_keys, held_values = self._keys[layer], self._values[layer]
        held_keys[:, :, self.length : end] = keys  # type: ignore[index]
        held_values[:, :, self.length : end] = values  # type: ignore[index]
        return held_keys[:, :, :end], held_values[:, :, :end]  # type: ignore[index]

    def buffers(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What lies behind the keys and values that `append` returned, contiguous: zeros where no token is yet."""
        held_keys, held_values = self._keys[layer], self._values[layer]
        return (keys, values) if held_keys is None or held_values is None else (held_keys, held_values)

    def advance(self, tokens: int) -> None:
        self.length += tokens


def _grown(buffer: torch.Tensor | None, like: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    batch, heads, _, width = like.shape
    grown = like.new_zeros(batch, heads, max(needed, 2 * used, 64), width)
    if buffer is not None:
        grown[:, :, :used] = buffer[:, :, :used]
    return grown
