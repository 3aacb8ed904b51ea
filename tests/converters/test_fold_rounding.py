"""The native rounding of a fold against NumPy's: the same bits for every kind of number, the same refusal."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramem_deploy.checkpoint.cast import cast
from ultramem_deploy.converters.fold import rounding
from ultramem_deploy.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rounded(numbers: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Rows of a strided array that is poisoned first."""
    rows = np.arange(len(numbers)) if rows is None else rows
    out = np.full((len(numbers), 3, numbers.shape[1]), 7, BFLOAT16)
    rounding.round_rows("here", numbers, out[:, 1], rows)
    assert (out[:, 0] == 7).all() and (out[:, 2] == 7).all()
    return out[rows, 1]


def test_the_library_is_used() -> None:
    assert rounding._kernel() is not None


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40), st.integers(-(2**45), 2**45))
def test_numbers_about_the_middle_of_two(bits: list[int], step: int) -> None:
    """Every bfloat16 and a half of a step beside it, and a little beside that: where two roundings go wrong."""
    low = np.array(bits, np.uint16).view(BFLOAT16).astype(np.float64)
    high = (np.array(bits, np.uint16) + np.uint16(1)).view(BFLOAT16).astype(np.float64)
    with np.errstate(all="ignore"):
        numbers = np.stack([low + (high - low) * (0.5 + step / 2**50), low, high, low + (high - low) * step / 2**45])
    numbers = numbers[:, np.isfinite(numbers).all(axis=0) & (np.abs(numbers) < 3e38).all(axis=0)]
    if numbers.size:
        assert (rounded(numbers).view(np.uint16) == cast("here", numbers, "bfloat16").view(np.uint16)).all()


@given(st.lists(st.floats(allow_nan=False, min_value=-3e38, max_value=3e38), min_size=1, max_size=70))
def test_any_number(numbers: list[float]) -> None:
    array = np.array(numbers)[None]
    assert (rounded(array).view(np.uint16) == cast("here", array, "bfloat16").view(np.uint16)).all()


def test_infinities_and_nan_stay() -> None:
    found = rounded(np.array([[np.inf, -np.inf, np.nan, -0.0, 1e-45, -1e-320]])).astype(np.float32)[0]
    assert found[0] == np.inf and found[1] == -np.inf and np.isnan(found[2])
    assert np.signbit(found[3:]).tolist() == [True, False, True] and (found[3:] == 0).all()


def test_rows_go_to_their_places() -> None:
    numbers = np.random.default_rng(0).standard_normal((5, 33))
    rows = np.array([3, 0, 4, 1, 2])
    assert (rounded(numbers, rows) == numbers.astype(np.float32).astype(BFLOAT16)).all()


@pytest.mark.parametrize("native", [True, False])
def test_a_number_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if not native:
        monkeypatch.setattr(rounding, "_kernel", lambda: None)
    with pytest.raises(InputError, match=r"here: 1 values, up to 3.4e\+38 in magnitude, do not fit bfloat16"):
        rounded(np.array([[1.0, 3.4e38, np.inf]]))


def test_other_dtypes_go_through_numpy() -> None:
    out = np.zeros((2, 3), np.float32)
    rounding.round_rows("here", np.full((2, 3), 0.1), out, np.arange(2))
    assert (out == np.float32(0.1)).all()
