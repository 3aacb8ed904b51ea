from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_deploy.checkpoint.cast import cast, check_cast
from ultramem_deploy.errors import InputError


def nearest_bfloat16(value: float) -> float:
    """Round to nearest even by exact arithmetic over the neighbours."""
    start = np.array(value).astype(np.float32).astype(ml_dtypes.bfloat16)
    bits = int(start.view(np.uint16))
    around = [np.array(bits + step, np.uint16).view(ml_dtypes.bfloat16) for step in (-1, 0, 1) if bits + step >= 0]
    finite = [one for one in around if np.isfinite(one)]
    return float(
        min(finite, key=lambda one: (abs(Fraction(float(one)) - Fraction(value)), int(one.view(np.uint16)) & 1))
    )


def test_double_rounding_is_avoided() -> None:
    # Just above the midpoint of two bfloat16 values; float32 would round it to the midpoint, then down to even.
    value = 1.0 + 2.0**-8 + 2.0**-40
    assert float(np.float64(value).astype(ml_dtypes.bfloat16)) == 1.0
    assert float(cast("x", np.array([value]), "bfloat16")[0]) == 1.0 + 2.0**-7


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1e38, allow_nan=False) | st.floats(0, 1e-38))
def test_float64_to_bfloat16_rounds_once(value: float) -> None:
    for sign in (1, -1):
        assert float(cast("x", np.array([sign * value]), "bfloat16")[0]) == sign * nearest_bfloat16(value)


@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32", "float8_e5m2", "float8_e4m3fn"])
def test_infinities_and_nan_pass(target: str) -> None:
    found = cast("x", np.array([np.nan, -0.0, 1.0], np.float64), target).astype(np.float32)
    assert np.isnan(found[0]) and np.signbit(found[1]) and found[2] == 1


@pytest.mark.parametrize(("target", "value"), [("float16", 70000.0), ("float8_e4m3fn", 1000.0), ("float32", 1e300)])
def test_overflow_is_an_error(target: str, value: float) -> None:
    with pytest.raises(InputError, match=f"t: 1 values, up to .* do not fit {target}"):
        cast("t", np.array([1.0, value]), target)


def test_only_floats_are_cast() -> None:
    check_cast("t", "int32", "int32")
    for source, target in (("int32", "float32"), ("float32", "int8"), ("bool", "float16"), ("int8", "int32")):
        with pytest.raises(InputError, match=f"{source} is not cast to {target}"):
            check_cast("t", source, target)
