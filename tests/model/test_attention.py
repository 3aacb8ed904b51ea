"""Attention of one position, as two products and by the native kernel, against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests import builders as b
from ultramem_deploy.model import KVCache
from ultramem_deploy.model.attention import Context, one_position
from ultramem_deploy.ops import native


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_one_position(heads: int, kv_heads: int, scale: float | None, masked: bool) -> None:
    generator = torch.Generator().manual_seed(heads)
    # Places of a cache with room to spare, values of a width of their own.
    q = torch.randn(2, 1, heads, 8, generator=generator).transpose(1, 2)
    k, v = (torch.randn(2, kv_heads, 20, width, generator=generator) for width in (8, 5))
    mask = torch.rand(2, 1, 1, 11, generator=generator) < 0.6 if masked else None
    if mask is not None:
        mask[..., -1] = True
    repeated = (x[:, :, :11].double().repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    expected = F.scaled_dot_product_attention(q.double(), *repeated, attn_mask=mask, scale=scale)[:, :, 0]
    # float32 sums of eight and eleven products near 1.
    torch.testing.assert_close(one_position(q, k, v, 11, mask, scale).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("native_kernel", [True, False])
def test_bfloat16_over_a_cache_that_doubled(native_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native_kernel:
        monkeypatch.setattr(native, "kernels", lambda: None)
    decoder = b.decoder(num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16)
    cache, generator = KVCache(decoder), torch.Generator().manual_seed(0)
    k, v = (torch.randn(3, 2, 301, 16, generator=generator).bfloat16() for _ in range(2))
    for end, begin in ((200, 0), (300, 200)):  # 400 places are held
        cache.append(0, k[:, :, begin:end], v[:, :, begin:end])
        cache.advance(end - begin)
    context = Context((k, k), (k, k), None, None, cache)
    q = torch.randn(3, 4, 1, 16, generator=generator).bfloat16()
    found = context.attend(decoder, 0, q, k[:, :, 300:], v[:, :, 300:])
    repeated = (x.double().repeat_interleave(2, dim=1) for x in (k, v))
    expected = F.scaled_dot_product_attention(q.double(), *repeated)[:, :, 0].flatten(1)
    # Scores near 1 and weights in bfloat16: 2^-9 each of values near 1, averaged over many places.
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=2**-7, atol=2**-8)
