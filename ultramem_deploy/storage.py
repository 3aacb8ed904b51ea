"""How a quantised table is stored: the dtype of its codes, their bits and range, one float32 scale a row (no torch).

A row stands for code * scale. The scale belongs to the row that an operator addresses: a plain table [N, D] has scales
[N]; an expanded one is addressed as [N*M, d], one row a core, and has scales [N*M]. int4 codes lie two in a byte, the
even column in the low half, as code + 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SCALE_DTYPE = "float32"
SCALE_BYTES = 4


@dataclass(frozen=True)
class Storage:
    """`dtype` of the stored tensor, bits a number, and the largest magnitude that rows are scaled to."""

    dtype: str
    bits: int
    largest: float

    def columns(self, width: int) -> int:
        """Columns of the stored tensor for rows of `width` numbers."""
        return width * self.bits // 8


STORAGES: Mapping[str, Storage] = MappingProxyType(
    {
        "int8": Storage("int8", 8, 127.0),
        "int4": Storage("uint8", 4, 7.0),
        "float8_e4m3": Storage("float8_e4m3fn", 8, 448.0),
    }
)


DENSE_BITS: Mapping[str, int] = MappingProxyType({"int8": 8, "int4": 4})
DENSE_BLOCK = 32
"""Numbers of a weight's row that share a scale: ONNX Runtime's smallest common block, and its fastest at batch 1."""


def dense_shapes(out: int, inner: int, storage: str) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Shapes of codes (uint8) and scales (float32) of a weight [out, inner], as MatMulNBits reads them.

    `inner` is a multiple of `DENSE_BLOCK`.
    """
    blocks = inner // DENSE_BLOCK
    return (out, blocks, DENSE_BLOCK * DENSE_BITS[storage] // 8), (out, blocks)
