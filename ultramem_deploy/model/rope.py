"""Rotary position embedding: frequencies from the description, rotation of halves."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..spec import DecoderSpec, RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> np.ndarray:
    """The head_dim/2 angular frequencies, float32 (RoPE; Llama 3's piecewise scaling where asked)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (1.0 / (np.float32(rope.theta) ** exponents)).astype(np.float32)
    if rope.scaling == "linear":
        return (inverse / np.float32(rope.factor)).astype(np.float32)
    return _llama3(rope, inverse) if rope.scaling == "llama3" else inverse


def _llama3(rope: RopeSpec, inverse: np.ndarray) -> np.ndarray:
    wavelength = 2 * math.pi / inverse
    low = rope.original_max_positions / rope.low_freq_factor
    high = rope.original_max_positions / rope.high_freq_factor
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / span
    blended = (1 - smooth) * inverse / rope.factor + smooth * inverse
    scaled = np.where(wavelength > low, inverse / rope.factor, np.where(wavelength < high, inverse, blended))
    return scaled.astype(np.float32)


def cos_sin(decoder: DecoderSpec, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [B, 1, S, head_dim/2], float32, of positions [B, S]."""
    inverse = torch.from_numpy(inverse_frequencies(decoder.rope, decoder.head_dim)).to(positions.device)
    angles = positions[:, None, :, None].float() * inverse
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [B, heads, S, head_dim], pairing entry i with i + head_dim/2."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
