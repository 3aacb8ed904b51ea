"""Attention of one position, as two products, against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ultramem_deploy.model.attention import one_position


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_one_position(heads: int, kv_heads: int, scale: float | None, masked: bool) -> None:
    generator = torch.Generator().manual_seed(heads)
    # Places of a cache with room to spare, values of a width of their own.
    q = torch.randn(2, 1, heads, 8, generator=generator).transpose(1, 2)
    k, v = (torch.randn(2, kv_heads, 20, width, generator=generator)[:, :, :11] for width in (8, 5))
    mask = torch.rand(2, 1, 1, 11, generator=generator) < 0.6 if masked else None
    if mask is not None:
        mask[..., -1] = True
    repeated = (x.double().repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    expected = F.scaled_dot_product_attention(q.double(), *repeated, attn_mask=mask, scale=scale)[:, :, 0]
    # float32 sums of eight and eleven products near 1.
    torch.testing.assert_close(one_position(q, k, v, mask, scale).double(), expected, rtol=1e-5, atol=1e-5)
