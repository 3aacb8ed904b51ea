"""Attention of one position by the native kernel, of every instruction set, against NumPy's softmax in float64."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from ultramem_deploy.model.attention import one_position as two_products
from ultramem_deploy.ops import native, native_attention

from .conftest import LEVELS

TYPES = {torch.float32: 2**-17, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Tolerances: float32 sums of up to 3000 products near 1; else twice what rounding the output to 11 or 8 bits loses."""

# batch, heads, key-value heads, places, width, value width
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (3, 4, 4, 64, 64, 64),
    (2, 6, 2, 65, 5, 7),
    (1, 7, 1, 3000, 80, 48),
    (1, 16, 4, 131, 128, 33),
    (2, 12, 1, 257, 192, 128),
    (2, 9, 3, 17, 16, 300),
]


@pytest.fixture(params=LEVELS)
def kernel(request: pytest.FixtureRequest, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of one instruction set, writing to outputs full of NaN."""
    if request.param not in libraries:
        pytest.skip(f"this machine lacks {request.param}")
    loaded = native.Kernels(ctypes.CDLL(str(libraries[request.param])))
    monkeypatch.setattr(native, "kernels", lambda: loaded)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, torch.nan))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cached(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Numbers [B, heads, places, width] within a larger buffer of NaN: more heads, places and columns."""
    buffer = torch.full([size + more for size, more in zip(shape, (0, 1, 9, 3), strict=True)], torch.nan)
    inside = buffer.to(dtype)[:, : shape[1], : shape[2], : shape[3]]
    return inside.copy_(drawn(seed, *shape))


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> np.ndarray:
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().numpy().repeat(group, axis=1) for x in (k, v))
    scores = np.einsum("bhw,bhpw->bhp", q[:, :, 0].double().numpy(), keys) * scale
    if mask is not None:
        scores = np.where(mask[:, 0].numpy(), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhp,bhpw->bhw", weights / weights.sum(-1, keepdims=True), values)


def check(found: torch.Tensor, truth: np.ndarray) -> None:
    tolerance = TYPES[found.dtype]
    np.testing.assert_allclose(found.double().numpy(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("kernel")
def test_strided_caches_of_any_width(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, heads, kv_heads, places, width, value_width = shape
    q = drawn(1, batch, 1, heads, width).transpose(1, 2).to(dtype)
    k, v = (cached(i, dtype, batch, kv_heads, places, w) for i, w in ((2, width), (3, value_width)))
    mask = drawn(4, batch, 1, 1, places + 2)[..., :places] < 0.5
    mask[..., places // 2] = True
    for seen, scale in ((None, None), (mask, 0.3), (mask[:1], width**-0.5)):
        assert native_attention.usable(q, k, v, seen)
        found = native_attention.one_position(q, k, v, seen, scale)
        check(found, expected(q, k, v, seen, width**-0.5 if scale is None else scale))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("kernel")
def test_padding_and_windows_are_not_read(dtype: torch.dtype) -> None:
    q, k, v = drawn(1, 3, 4, 1, 16).to(dtype), cached(2, dtype, 3, 2, 500, 16), cached(3, dtype, 3, 2, 500, 16)
    mask = torch.zeros(3, 1, 1, 500, dtype=torch.bool)
    for row, (first, last) in enumerate(((499, 500), (7, 401), (0, 230))):
        mask[row, ..., first:last] = True
        for x in (k, v):
            x[row, :, :first] = torch.inf
            x[row, :, last:] = torch.nan
    found = native_attention.one_position(q, k, v, mask, None)
    clean = [x.where(mask.transpose(2, 3), 0) for x in (k, v)]
    check(found, expected(q, *clean, mask, 0.25))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("kernel")
def test_scores_of_any_size_in_any_order(dtype: torch.dtype) -> None:
    """Differences of thousands, the largest score first, last and in the middle: one place takes all the weight."""
    q, v = torch.full((1, 1, 1, 8), 50.0, dtype=dtype), cached(3, dtype, 1, 1, 700, 8)
    rising = torch.arange(700, dtype=torch.float32).div(64)
    for slope in (rising, rising.flip(0), rising.roll(350)):
        k = slope[None, None, :, None].expand(1, 1, 700, 8).to(dtype).contiguous()
        for scale in (1.0, -1.0, 1e-3):
            found = native_attention.one_position(q, k, v, None, scale)
            # Scores up to 4400 in float32 are off by 2^-12, and weights by as much.
            np.testing.assert_allclose(
                found.double().numpy(), expected(q, k, v, None, scale), rtol=0, atol=max(TYPES[dtype], 2**-9)
            )


@pytest.mark.usefixtures("kernel")
def test_numbers_that_are_not_finite() -> None:
    """As the two products: NaN where nothing may be seen, and where a score is NaN or infinite; else none."""
    q, k, v = drawn(1, 5, 2, 1, 16), drawn(2, 5, 1, 100, 16), drawn(3, 5, 1, 100, 16)
    mask = torch.ones(5, 1, 1, 100, dtype=torch.bool)
    mask[0] = False
    k[1, :, 70, 3] = torch.nan
    k[2, :, 99] = q[2, 0, 0].sign() * torch.inf  # the other head's score is infinite or NaN
    k[3, :, 40] = q[3, :1, 0].sign() * -1e37  # finite products, weight 0 or all of it
    found, two = native_attention.one_position(q, k, v, mask, None), two_products(q, k, v, 100, mask, None)
    assert found.isnan().tolist() == two.isnan().tolist()
    assert [bool(row[0].isnan().all()) for row in found] == [True, True, True, False, False]
    torch.testing.assert_close(found, two, rtol=1e-5, atol=1e-5, equal_nan=True)  # float32 sums of values near 1


@pytest.mark.usefixtures("kernel")
def test_the_number_of_threads_changes_nothing() -> None:
    q, k, v = drawn(1, 3, 6, 1, 64), drawn(2, 3, 3, 2000, 64), drawn(3, 3, 3, 2000, 64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(native_attention.one_position(q, k, v, None, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], one) for one in found)


def test_what_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = drawn(1, 2, 4, 1, 8), drawn(2, 2, 2, 9, 8), drawn(3, 2, 2, 9, 5)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    usable = native_attention.usable
    assert usable(q, k, v, mask) and usable(q, k, v, None)
    assert not usable(q.double(), k.double(), v.double(), mask)
    assert not usable(q.bfloat16(), k, v, mask)
    assert not usable(q.detach().requires_grad_(), k, v, mask)
    assert not usable(q.expand(2, 4, 3, 8), k, v, None)
    assert not usable(q[:, :3], k, v, mask)
    assert not usable(q, k, v[:, :, :8], mask)
    assert not usable(q, k, v, mask[..., :8])
    assert not usable(q, k, v, mask.float())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert not usable(q, k, v, mask)
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert not usable(q, k, v, mask)
