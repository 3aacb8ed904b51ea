"""Conversions of small storage types by every instruction set, on every bit pattern that matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ultramem_deploy.ops import sparse_lookup

from .backends import runtime
from .cases import Case, decoded


def copy_through(library: Path, values: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """The numbers of a one-row table as SparseLookup gives them back, weighted by 1."""
    inputs = {
        "table": values[None],
        "addresses": torch.zeros((1, 1), dtype=torch.int64),
        "scores": torch.ones((1, 1, 1), dtype=dtype),
    }
    return runtime(library)(Case(sparse_lookup.OPERATOR, inputs, {"blocks": 1}))[0][0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reads_every_half(dtype: torch.dtype, libraries: dict[str, Path]) -> None:
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for library in libraries.values():
        np.testing.assert_array_equal(copy_through(library, values, torch.float32), values.float().numpy())


def test_reads_every_byte_of_a_quantised_table(libraries: dict[str, Path]) -> None:
    """Every code at 48 places of a row that ends within a vector; float8's NaN too."""
    codes = ((torch.arange(261) + torch.arange(48)[:, None]) % 256).to(torch.uint8)
    for number, (encoding, table) in enumerate(
        {"int8": codes.view(torch.int8), "int4": codes, "float8_e4m3": codes.view(torch.float8_e4m3fn)}.items(), 1
    ):
        inputs = {
            "table": table,
            "addresses": torch.arange(48)[:, None],
            "scores": torch.ones((48, 1, 1)),
            "scales": torch.ones(48),
        }
        case = Case(sparse_lookup.OPERATOR, inputs, {"blocks": 1, "encoding": number})
        for library in libraries.values():
            np.testing.assert_array_equal(runtime(library)(case)[0], decoded(table), err_msg=encoding)


def test_writes_halves_rounded_to_nearest_even(libraries: dict[str, Path]) -> None:
    """Every half, the numbers half-way between neighbours and those just beside: overflow and subnormals included."""
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16)
    exact = halves[np.isfinite(halves)].astype(np.float32)
    middle = (exact[:-1] + exact[1:]) / 2
    above, below = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))
    odd = np.array([65519.996, 65520, 1e30, np.inf, np.nan, 2**-25, 1.5 * 2**-25, 1e-30], np.float32)
    values = np.concatenate([exact, middle, above, below, odd])
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    for library in libraries.values():
        written = copy_through(library, torch.from_numpy(values), torch.float16)
        np.testing.assert_array_equal(written, expected)
