"""Llama 3's rotary scaling, which GGUF files hold as one divisor a frequency instead of four parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ultramem_deploy.spec import RopeSpec

_KNOWN = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))  # Llama 3.1 and 3.3; Llama 3.2


def scaling_of(divisors: np.ndarray[Any, Any], theta: float, head_dim: int) -> RopeSpec | None:
    """The description that gives these divisors [head_dim/2]; None when no published scaling does."""
    if divisors.shape != (head_dim // 2,):
        return None
    if np.all(divisors == 1.0):
        return RopeSpec(theta)
    for known in _KNOWN:
        if np.allclose(divisors, _divisors(theta, head_dim, *known), rtol=1e-5):
            factor, low, high, positions = known
            return RopeSpec(theta, "llama3", factor, low, high, positions)
    return None


def _divisors(
    theta: float, head_dim: int, factor: float, low: float, high: float, positions: int
) -> np.ndarray[Any, Any]:
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (positions / wavelength - low) / (high - low)
    with np.errstate(divide="ignore"):
        blended = 1 / ((1 - smooth) / factor + smooth)
    outer = np.where(wavelength > positions / low, factor, blended)
    return np.where(wavelength < positions / high, 1.0, outer)
