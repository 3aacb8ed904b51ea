"""Byte counts as people write and read them."""

from __future__ import annotations

import math
import re

from .errors import InputError

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:e\+?\d+)?|\.\d+)\s*([KMGT]?)(I?)(B?)", re.IGNORECASE)


def parse_bytes(text: str | int | float, option: str = "--memory-budget") -> int:
    """Bytes that "2GiB", "500MB", "1.5G" or "1e9" stand for: KiB to TiB count in 1024s, KB to TB in 1000s.

    Raises InputError naming `option` for anything else, and for sizes below one byte.
    """
    match = _SIZE.fullmatch(str(text).strip())
    unit = match[2].upper() if match else ""
    if match is None or (match[3] and not unit):
        raise InputError(f"{option}: expected a size such as 2GiB, 500MB or 1e9, found {str(text)!r}")
    scale = 1024 ** "KMGT".index(unit) * 1024 if match[3] else _UNITS[unit]
    count = float(match[1]) * scale
    if not 1 <= count < math.inf:
        raise InputError(f"{option}: expected at least one byte, found {str(text)!r}")
    return int(count)


def size(count: float) -> str:
    """Bytes for people: "513.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.2f} TiB"
