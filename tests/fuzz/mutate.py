"""Small damage to bytes and to JSON values, drawn so that hypothesis can shrink it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# A place, an operation, a payload; places and operations wrap round.
Edit = tuple[int, int, bytes]
EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.binary(max_size=6)), min_size=1, max_size=4)

_WEIRD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**70), 0.5, -0.0, 1e308, 1e-320,
    "", "x", "x" * 3000, "../outside.safetensors", "/etc/passwd", "a\0b", "link.safetensors", "\ud800", "a\nb", ".",
    "..", [], [[]], [0], {}, {"": None}, "F32", "I64", "F8_E4M3", "full", "no_mem", "0:0/0:1", "ultramem_v1", "rms",
    [0] * 70,
)  # fmt: skip


def damaged_bytes(content: bytes, edits: list[Edit]) -> bytes:
    """`content` with bytes overwritten, inserted, cut out, repeated, or the end missing."""
    data = bytearray(content)
    for place, operation, payload in edits:
        at = place % (len(data) + 1)
        kind = operation % 6
        if kind == 0:
            data[at : at + len(payload)] = payload
        elif kind == 1:
            data[at:at] = payload
        elif kind == 2:
            del data[at : at + 1 + operation // 6]
        elif kind == 3:
            data[at:at] = data[at : at + 1 + operation // 6]
        elif kind == 4:
            data[at : at + 8] = (b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7)[operation // 6 % 3]
        elif len(data) > 1:
            del data[max(1, at) :]
    return bytes(data)


def damaged_json(value: Any, edits: list[Edit]) -> Any:
    """`value` with entries replaced, removed, renamed, repeated or nested."""
    root = [copy.deepcopy(value)]
    for place, operation, payload in edits:
        places = list(_places(root))
        holder, key = places[place % len(places)]
        kind, weird = operation % 5, _WEIRD[(operation // 5 + sum(payload)) % len(_WEIRD)]
        if kind <= 1 or holder is root:
            holder[key] = copy.deepcopy(weird)
        elif kind == 2:
            del holder[key]
        elif kind == 3 and isinstance(holder, dict):
            holder[payload.decode("latin-1") or str(weird)] = holder.pop(key)
        elif kind == 3:
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = [holder[key]]
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def as_json(value: Any) -> bytes:
    """JSON text, whose lone surrogates stay escaped."""
    return json.dumps(value).encode("ascii")
