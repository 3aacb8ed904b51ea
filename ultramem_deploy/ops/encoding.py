"""How a table stores its numbers: as floats, or quantised with one float32 scale a row (value = code * scale).

| encoding | PyTorch dtype | ONNX type | stored row | code |
|---|---|---|---|---|
| float | float32, float16, bfloat16 | the same | [D] | the number itself, no scale |
| int8 | int8 | int8 | [D] | -127..127 |
| int4 | uint8 | uint8 | [D/2], low nibble first | nibble - 8 |
| float8_e4m3 | float8_e4m3fn | uint8 | [D] | the float8 number |

ONNX Runtime gathers neither int4 nor float8, so both are bytes there and the attribute `encoding` tells them apart.
"""

from __future__ import annotations

import numpy as np
import torch

ENCODINGS = ("float", "int8", "int4", "float8_e4m3")
TABLE_TYPES = ("float32", "float16", "bfloat16", "int8", "uint8")
DOC = (
    "A quantised table (encoding above 0) has one scale a row: value = code * scale. int8 codes are int8; int4 codes "
    "are packed two a uint8, low nibble first, code = nibble - 8; float8_e4m3 codes are uint8 by their bits."
)
ATTRIBUTE_DOC = "how the table stores a row: 0 float, 1 int8, 2 int4, 3 float8_e4m3; the last three take scales"
SCALES_DOC = "scale of each row, for a quantised table alone"

_QUANTISED = {torch.int8: "int8", torch.uint8: "int4", torch.float8_e4m3fn: "float8_e4m3"}

# Each makes `values` [T, K, D] float32 of `table`, `rows` [T, K] and `scales`: Gather first, or constant folding would
# decode the whole table.
_FLOAT_BODY = """
        gathered = Gather <axis = 0> (table, rows)
        values = Cast <to = 1> (gathered)"""
_SCALED = """
        row_scales = Gather <axis = 0> (scales, rows)
        scale_axis = Constant <value_ints = [2]> ()
        row_scales3 = Unsqueeze (row_scales, scale_axis)
        values = Mul (codes, row_scales3)"""
_INT8_BODY = f"""
        gathered = Gather <axis = 0> (table, rows)
        codes = Cast <to = 1> (gathered){_SCALED}"""
# `codebook` [256, numbers a byte] is put before the body.
_CODEBOOK_BODY = f"""
        gathered = Gather <axis = 0> (table, rows)
        byte_values = Cast <to = 7> (gathered)
        decoded = Gather <axis = 0> (codebook, byte_values)
        rows_shape = Shape (rows)
        bytes_a_row = Shape <start = 1, end = 2> (table)
        numbers_a_byte = Shape <start = 1, end = 2> (codebook)
        decoded_width = Mul (bytes_a_row, numbers_a_byte)
        codes_shape = Concat <axis = 0> (rows_shape, decoded_width)
        codes = Reshape <allowzero = 1> (decoded, codes_shape){_SCALED}"""


def values_body(encoding: str) -> str:
    """The part of a function body that gathers and decodes rows."""
    return {"float": _FLOAT_BODY, "int8": _INT8_BODY}.get(encoding, _CODEBOOK_BODY)


def codebook(encoding: str) -> np.ndarray | None:
    """What each byte of a packed row stands for, float32 [256, numbers a byte]; None where no byte is decoded."""
    every_byte = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    if encoding == "int4":
        return codes(every_byte[:, None]).numpy()
    if encoding == "float8_e4m3":
        return codes(every_byte[:, None].view(torch.float8_e4m3fn)).numpy()
    return None


def encoding_of(table: torch.Tensor) -> str:
    """The encoding that a table's dtype stands for; `ENCODINGS` lists them."""
    return _QUANTISED.get(table.dtype, "float")


def table_width(table: torch.Tensor) -> int:
    """D: how many numbers a row holds."""
    return int(table.shape[1]) * (2 if table.dtype == torch.uint8 else 1)


def check_scales(operator: str, table: torch.Tensor, scales: torch.Tensor | None) -> None:
    """Raise ValueError unless `scales` [N] float32 is there exactly where the table needs it."""
    encoding, found = encoding_of(table), None if scales is None else (tuple(scales.shape), scales.dtype)
    expected = None if encoding == "float" else ((table.shape[0],), torch.float32)
    if found != expected:
        raise ValueError(f"{operator}: scales for a table of encoding {encoding} must be {expected}, found {found}")


def codes(stored: torch.Tensor) -> torch.Tensor:
    """The numbers of stored rows [..., W] before scaling, float32 [..., D]."""
    if stored.dtype != torch.uint8:
        return stored.float()
    nibbles = torch.stack((stored & 15, stored >> 4), dim=-1)
    return nibbles.flatten(-2).float() - 8


def gather(table: torch.Tensor, rows: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """The numbers of `rows` (any shape), float32 [..., D]."""
    # PyTorch's CPU indexing does not take float8; its bytes it does.
    stored = table.view(torch.uint8)[rows].view(table.dtype) if encoding_of(table) == "float8_e4m3" else table[rows]
    values = codes(stored)
    return values if scales is None else values * scales[rows][..., None]


def whole(table: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """The numbers of every row, float32 [N, D]."""
    return gather(table, torch.arange(table.shape[0], device=table.device), scales)


def reads_most(table: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether `rows` [T, K] are so many that one product with the whole table is cheaper than gathering them."""
    tokens, taken = rows.shape
    return tokens >= 8 and 4 * taken >= table.shape[0]


def gradients(
    table: torch.Tensor, rows: torch.Tensor, scales: torch.Tensor | None, grad: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Of a float table, or of the scales of a quantised one: from the gradient [..., D] float32 of gathered `rows`."""
    flat = grad.flatten(0, -2)
    if scales is None:
        grad_table = torch.zeros_like(table, dtype=torch.float32)
        return grad_table.index_add_(0, rows.flatten(), flat).to(table.dtype), None
    share = (flat * gather(table, rows.flatten(), None)).sum(1)
    return None, torch.zeros_like(scales).index_add_(0, rows.flatten(), share)
