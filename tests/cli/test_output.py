"""How measured numbers are shown."""

from __future__ import annotations

import math

import pytest

from ultramem_deploy.checkpoint.provenance import plain
from ultramem_deploy.cli.output import number


@pytest.mark.parametrize(
    ("value", "shown"), [(12.3456, "12.3"), (0.0, "0"), (7, "7"), (math.inf, "not finite"), (None, "not finite")]
)
def test_a_recorded_number_is_shown_as_a_fresh_one(value: float | None, shown: str) -> None:
    """What is up to date tells its receipt from JSON, which has no infinity."""
    assert number(value) == number(plain(value)) == shown
