"""Rotary position embedding: frequencies from the description, rotation of halves."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> np.ndarray:
    """The head_dim/2 angular frequencies, float32 (RoPE; Llama 3's piecewise scaling where asked)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (1.0 / (np.float32(rope.theta) ** exponents)).astype(np.float32)
    if rope.scaling == "linear":
        return (inverse / np.float32(rope.factor)).astype(np.float32)
    if rope.scaling == "yarn":
        return _yarn(rope, inverse, head_dim)
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


def _yarn(rope: RopeSpec, inverse: np.ndarray, width: int) -> np.ndarray:
    """YaRN's blend by parts (arXiv 2309.00071, 3.2): dimensions that rotate often keep their frequency."""

    def dimension(rotations: float) -> float:
        turns = rope.original_max_positions / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - low) / span, 0, 1)
    blended: np.ndarray = (inverse / rope.factor * ramp + inverse * (1 - ramp)).astype(np.float32)
    return blended


def cos_sin(
    rope: RopeSpec, width: int, positions: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `rotate` multiplies by at positions [B, S]: cosines twice over, and sines negated, then as they are.

    [B, 1, S, width] of `dtype`, computed in float32.
    """
    inverse = torch.from_numpy(inverse_frequencies(rope, width)).to(positions.device)
    angles = positions[:, None, :, None].float() * inverse
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Rotate x [B, heads, S, width], pairing entry i with i + width/2; interleaved: entry 2i with 2i + 1.

    The result has halves side by side either way: queries and keys agree, so their products do. cos, sin: of `cos_sin`.
    """
    if interleaved:
        x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)
