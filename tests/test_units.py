"""Byte counts as people write them."""

from __future__ import annotations

import pytest

from ultramem_deploy.errors import InputError
from ultramem_deploy.units import parse_bytes, size

READ = {"2GiB": 2 << 30, "500MB": 500_000_000, "1e9": 10**9, "1.5G": 1_500_000_000, "64 kib": 64 << 10, "7": 7,
        ".5TiB": 1 << 39, "1e+3B": 1000}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_sizes_are_read(text: str) -> None:
    assert parse_bytes(text) == READ[text]


def test_numbers_pass() -> None:
    assert parse_bytes(1 << 30) == 1 << 30 and parse_bytes(2e9) == 2_000_000_000


@pytest.mark.parametrize("text", ["", "GiB", "lots", "-1", "1e999", "0", "nan", "12XB", "5iB", "1 2"])
def test_anything_else_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(InputError, match="--memory-budget: expected .* found"):
        parse_bytes(text)


def test_sizes_are_shown() -> None:
    assert [size(n) for n in (3, 1536, 5 << 30, 3 << 40)] == ["3 B", "1.5 KiB", "5.0 GiB", "3.00 TiB"]
