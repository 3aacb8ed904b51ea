"""The rank-1 approximation of a Tucker core that stage 1 of the retrieval uses (spec §2)."""

from __future__ import annotations

from typing import Any

import numpy as np


def rank_one(core: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """u, v [H, R]: leading singular vectors of the summed core [H, R, R], with sum(u) >= 0.

    The sign decides which rows are the top ones; a non-negative core has non-negative leading vectors.
    """
    left, _, right = np.linalg.svd(core.astype(np.float64))
    u, v = left[..., 0], right[..., 0, :]
    sign = np.where(u.sum(-1, keepdims=True) < 0, -1.0, 1.0)
    return (u * sign).astype(np.float32), (v * sign).astype(np.float32)
