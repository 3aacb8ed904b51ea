"""The dense layer of few rows by the native kernel, of every instruction set, against NumPy's product in float64."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ultramem_deploy.ops import native, native_linear

from .conftest import EVERY_LEVEL

# rows, depth, columns: around blocks of rows, groups of columns, vectors, lines of the cache and passes of 128 rows
SHAPES = [
    (1, 1, 1),
    (1, 64, 4),
    (2, 7, 3),
    (3, 33, 5),
    (6, 192, 129),
    (7, 96, 2),
    (8, 2736, 6),
    (13, 31, 1000),
    (128, 40, 9),
    (131, 65, 10),
]


@pytest.fixture(params=EVERY_LEVEL)
def kernel(request: pytest.FixtureRequest, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of one instruction set, writing to outputs full of NaN."""
    if request.param not in libraries:
        pytest.skip(f"this machine lacks {request.param}")
    loaded = native.Kernels(ctypes.CDLL(str(libraries[request.param])))
    assert loaded.isa == request.param

    def poisoned(x: torch.Tensor, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return x.new_full(shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(native, "kernels", lambda: loaded)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unaligned(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers from one behind the buffer's start on, with NaN around them."""
    count = torch.Size(shape).numel()
    buffer = torch.full((count + 2,), torch.nan, dtype=dtype)
    return buffer[1 : count + 1].view(shape).copy_(drawn(seed, *shape, dtype=dtype))


def check(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Within what float32 sums of these products lose, and half a unit of the output where that has fewer bits."""
    wide = [t.double().numpy() for t in (x, weight)]
    truth = wide[0] @ wide[1].T
    added = np.zeros(weight.shape[0]) if bias is None else bias.double().numpy()
    size = np.abs(wide[0]) @ np.abs(wide[1]).T + np.abs(added)
    off = np.abs(found.double().numpy() - (truth + added))
    rounded = torch.finfo(found.dtype).eps / 2 * np.abs(truth + added)
    assert (off <= 2.0**-20 * size + 1.01 * rounded).all(), off.max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", native_linear.TYPES)
@pytest.mark.usefixtures("kernel")
def test_any_shape(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, depth, columns = shape
    weight, bias = unaligned(2, columns, depth, dtype=dtype), unaligned(3, columns, dtype=dtype)
    wide = torch.full((rows, depth + 5), torch.nan, dtype=dtype)
    strided = wide[:, 2 : depth + 2].copy_(drawn(1, rows, depth, dtype=dtype))
    for x in (drawn(1, rows, depth, dtype=dtype), strided):
        for added in (None, bias):
            assert native_linear.usable(x, weight, added)
            for output in {dtype, torch.float32}:
                found = native_linear.product(x, weight, added, output)
                assert found.dtype == output
                check(found, x, weight, added)


@pytest.mark.usefixtures("kernel")
def test_inputs_of_any_dimensions() -> None:
    weight = drawn(2, 12, 40)
    for shape in ((40,), (0, 40), (2, 3, 40), (2, 1, 4, 40)):
        x = drawn(1, *shape)
        found = native_linear.product(x, weight, None, torch.float32)
        assert found.shape == (*shape[:-1], 12)
        check(found, x, weight, None)
    transposed = drawn(1, 40, 5).T
    check(native_linear.product(transposed, weight, None, torch.float32), transposed, weight, None)
    shared = drawn(1, 1, 40).expand(5, 40)
    check(native_linear.product(shared, weight, None, torch.float32), shared, weight, None)
    assert native_linear.product(drawn(1, 3, 40), weight[:0], None, torch.float32).shape == (3, 0)


@pytest.mark.usefixtures("kernel")
def test_numbers_that_are_not_finite_stay_in_their_row_and_column() -> None:
    x, weight = drawn(1, 9, 70), drawn(2, 11, 70)
    x[4, 69], weight[6, 1], weight[8, 2] = torch.nan, torch.inf, -torch.inf
    found = native_linear.product(x, weight, None, torch.bfloat16)
    assert found.isfinite().tolist() == F.linear(x.double(), weight.double()).isfinite().tolist()


@pytest.mark.usefixtures("kernel")
def test_neither_threads_nor_other_rows_change_a_number() -> None:
    x, weight = drawn(1, 21, 512), drawn(2, 1003, 512)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(native_linear.product(x, weight, None, torch.float32))
    finally:
        torch.set_num_threads(before)
    found.append(torch.cat([native_linear.product(row[None], weight, None, torch.float32) for row in x]))
    assert all(torch.equal(found[0], one) for one in found)


def test_what_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = drawn(1, 3, 8), drawn(2, 4, 8), drawn(3, 4)
    usable = native_linear.usable
    assert usable(x, weight, bias) and usable(x, weight, None)
    assert not usable(x.float(), weight, bias)
    assert not usable(x.double(), weight.double(), bias.double())
    assert not usable(x, weight.float(), bias)
    assert not usable(x, weight, bias.float())
    assert not usable(x, weight, bias[:1])
    assert not usable(x, weight, drawn(3, 4, 2)[:, 0])
    assert not usable(x, weight[:, :7], bias)
    assert not usable(x[:, :7], weight, bias)
    assert not usable(x.detach().requires_grad_(), weight, bias)
    with torch.autocast("cpu"):
        assert not usable(x, weight, bias)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert not usable(x, weight, bias)
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert not usable(x, weight, bias)
    assert native_linear.most_rows.__wrapped__(torch.float32) == 0


@pytest.mark.parametrize(
    ("isa", "dtype", "amx", "intel", "rows"),
    [
        ("plain", torch.float32, False, False, 0),
        ("avx2", torch.float32, False, True, 128),
        ("avx2", torch.float32, False, False, native_linear.ANY),
        ("avx2", torch.bfloat16, False, True, native_linear.ANY),
        ("avx512_bf16", torch.bfloat16, False, True, 128),
        ("avx512_bf16", torch.bfloat16, True, True, 16),
    ],
)
def test_how_many_rows_the_kernel_takes(
    isa: str, dtype: torch.dtype, amx: bool, intel: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = native.kernels()
    assert loaded is not None
    monkeypatch.setattr(loaded, "isa", isa)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(native_linear, "_is_intel", lambda: intel)
    assert native_linear.most_rows.__wrapped__(dtype) == rows


def test_more_rows_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_linear, "most_rows", lambda _: 5)
    calls: list[int] = []

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(x))
        return F.linear(x, *rest[:2])

    monkeypatch.setattr(native_linear, "product", counted)
    for count in (5, 6):
        native_linear.linear(drawn(1, count, 8), drawn(2, 4, 8))
    assert calls == [5]


def test_gradients_and_other_types_are_pytorchs() -> None:
    x, weight = drawn(1, 3, 8).requires_grad_(), drawn(2, 4, 8)
    native_linear.linear(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.float().sum(0).bfloat16().expand(3, 8), rtol=2**-7, atol=2**-7)
    wide, other = x.detach().double(), weight.double()
    assert torch.equal(native_linear.linear(wide, other), F.linear(wide, other))
    scores = native_linear.linear(wide, other, dtype=torch.float32)
    assert torch.equal(scores, F.linear(wide, other).float())
    narrow = native_linear.linear(wide.float(), other.float(), dtype=torch.bfloat16)
    assert torch.equal(narrow, F.linear(wide.float(), other.float()).bfloat16())
