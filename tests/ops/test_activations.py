"""The activations of SparseGate on every instruction set, against float64, over dense grids, both tails and what is not
finite."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ultramem_deploy.ops import native
from ultramem_deploy.ops.sparse_gate import ACTIVATIONS

Gate = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(params=["plain", "avx2", "avx512"])
def gate(request: pytest.FixtureRequest, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Gate:
    """activation -> values [n] -> its numbers: rows of one column, times 1."""
    if request.param not in libraries:
        pytest.skip(f"this machine lacks {request.param}")
    kernels = native.Kernels(ctypes.CDLL(str(libraries[request.param])))
    monkeypatch.setattr(native, "kernels", lambda: kernels)

    def run(name: str, values: torch.Tensor) -> torch.Tensor:
        addresses = torch.arange(len(values))[None]
        out = native.sparse_gate(values[:, None], addresses, torch.ones(1, 1), ACTIVATIONS.index(name), None)
        assert out is not None
        return out[0]

    return run


def grid() -> torch.Tensor:
    """A million numbers in [-20, 20], and powers of two of either sign, from the smallest to the largest."""
    powers = torch.exp2(torch.arange(-149.0, 128.0))
    return torch.cat([torch.linspace(-20, 20, 1_000_001), powers, -powers])


def exact(name: str, x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return F.silu(x) if name == "silu" else x * torch.special.erfc(-x / 2**0.5) / 2


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_activations_are_exact_to_float32(name: str, gate: Gate) -> None:
    """Two roundings of float32, of x or of 1: measured 1.18e-7 (SiLU) and 1.13e-7 (GELU), erf's own included."""
    x = grid()
    error = (gate(name, x).double() - exact(name, x)).abs()
    assert (error <= 1.25e-7 * x.double().abs().clamp(min=1)).all()


@pytest.mark.parametrize("name, allowed", [("silu", 1e-6), ("gelu", 8e-6)])
def test_the_lower_tail_keeps_its_digits(name: str, allowed: float, gate: Gate) -> None:
    """Relative to a number of 1e-4 to 1e-22 (GELU at -10): measured 6.3e-7 and 5.0e-6, the rounded exponent's share."""
    x = torch.linspace(-10, 0, 500_001)[:-1]
    torch.testing.assert_close(gate(name, x).double(), exact(name, x), rtol=allowed, atol=0)


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_what_is_not_finite(name: str, gate: Gate) -> None:
    """As PyTorch's SiLU and the operator's function body: -inf * 0 is NaN."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 0.0] * 9)
    expected = torch.tensor([inf, nan, nan, 0.0] * 9)
    torch.testing.assert_close(gate(name, x), expected, rtol=0, atol=0, equal_nan=True)
