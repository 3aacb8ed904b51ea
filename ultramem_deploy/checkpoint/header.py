"""Safetensors headers: what a file holds and where, read without touching the tensors (and without torch)."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ultramem_deploy.errors import InputError

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses longer ones too
_MAX_SIZE = 2**63 - 1
_MAX_DIMS = 32  # what every numpy and the runtimes can hold

SAFETENSORS_CODES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "F16": "float16",
        "BF16": "bfloat16",
        "U32": "uint32",
        "I32": "int32",
        "F32": "float32",
        "U64": "uint64",
        "I64": "int64",
        "F64": "float64",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
    }
)
"""Code in the file -> our dtype name (the names of numpy, ml_dtypes and torch, which agree)."""

_ML_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
_ITEMSIZE = dict.fromkeys(("bool", "uint8", "int8", *_ML_DTYPES), 1)
_ITEMSIZE |= dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 2)
_ITEMSIZE |= dict.fromkeys(("uint32", "int32", "float32"), 4)
_ITEMSIZE |= dict.fromkeys(("uint64", "int64", "float64", "complex64"), 8)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `nbytes` bytes at byte `offset` of `file`, row-major, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def itemsize(name: str) -> int:
    """Bytes an element of dtype `name` takes; InputError for a name we do not know."""
    if name in _ITEMSIZE:
        return _ITEMSIZE[name]
    raise InputError(f"unknown dtype {shown(name)}: expected one of {', '.join(sorted(SAFETENSORS_CODES.values()))}")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype called `name` (bfloat16 and float8 come from ml_dtypes); InputError for a name we do not know."""
    import numpy as np

    itemsize(name)
    if name in _ML_DTYPES:
        import ml_dtypes

        scalar: type[np.generic] = getattr(ml_dtypes, name)
        return np.dtype(scalar)
    return np.dtype(name)


def shown(name: object, limit: int = 120) -> str:
    """A name from a file, safe to print on one line."""
    text = ascii(name)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def label(name: object) -> str:
    """A name from a file: as it is where it can stand in a line, else escaped."""
    text = str(name)
    return text if text.isprintable() and 0 < len(text) <= 80 else shown(text)


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors (by name, in file order) and the metadata of the safetensors file `path`.

    Strict: whatever is not a whole, hole-free safetensors file raises InputError, with one line that says why.
    """
    file = Path(path)
    text, data_start, size = _header_text(file)
    entries = strict_json(text, str(file), "header")
    metadata = _metadata(file, entries.pop("__metadata__", {}))
    infos = [_tensor(file, name, entry, data_start) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.offset, info.offset + info.nbytes))
    _check_layout(file, infos, data_start, size)
    return {info.name: info for info in infos}, metadata


def strict_json(text: bytes, where: str, what: str) -> dict[str, Any]:
    """Parse a JSON object as RFC 8259 has it: UTF-8, no duplicate keys, no NaN. InputError otherwise."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else shown(str(error), 160)[1:-1]
        raise InputError(
            f"{where}: the {what} is not valid JSON ({reason}); the file is damaged, get it again"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: the {what} must be a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {shown(key)} appears twice")
        key.encode("utf-8")  # a lone surrogate cannot be written back, nor printed
        result[key] = value
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _header_text(file: Path) -> tuple[bytes, int, int]:
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise InputError(
                    f"{file}: not a safetensors file: {size} bytes, expected at least 8 (truncated download?)"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise InputError(
                    f"{file}: not a safetensors file: it claims a header of {length} bytes, at most {MAX_HEADER_BYTES}"
                )
            if length > size - 8:
                raise InputError(
                    f"{file}: truncated in the header: at least {length + 8 - size} bytes missing; get the file again"
                )
            text = stream.read(length)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not text.startswith(b"{"):
        raise InputError(f"{file}: not a safetensors file: its header does not start with '{{'")
    return text, 8 + length, size


def _metadata(file: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InputError(f"{file}: __metadata__ must map strings to strings, found {shown(value)}")
    return dict(value)


def _tensor(file: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    where = f"{file}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object with dtype, shape and data_offsets, found {shown(entry)}")
    code = entry.get("dtype")
    if not isinstance(code, str) or code not in SAFETENSORS_CODES:
        raise InputError(f"{where}: unsupported dtype {shown(code)}, expected one of {', '.join(SAFETENSORS_CODES)}")
    dtype = SAFETENSORS_CODES[code]
    shape = _sizes(where, "shape", entry.get("shape"))
    if len(shape) > _MAX_DIMS:
        raise InputError(f"{where}: {len(shape)} dimensions, at most {_MAX_DIMS} are supported")
    if math.prod(size for size in shape if size) * itemsize(dtype) > _MAX_SIZE:
        raise InputError(f"{where}: shape {shown(list(shape))} of {dtype} does not fit 64-bit sizes")
    offsets = _sizes(where, "data_offsets", entry.get("data_offsets"))
    nbytes = math.prod(shape) * itemsize(dtype)
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise InputError(
            f"{where}: data_offsets {shown(offsets)} do not span the {nbytes} bytes of {dtype} {shown(shape)}"
        )
    return TensorInfo(name, dtype, shape, file, data_start + offsets[0], nbytes)


def _sizes(where: str, what: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value):
        raise InputError(f"{where}: {what} must be a list of integers from 0 to 2^63-1, found {shown(value)}")
    return tuple(value)


def _check_layout(file: Path, infos: list[TensorInfo], data_start: int, size: int) -> None:
    expected = data_start
    for info in infos:
        if info.offset != expected:
            problem = "overlaps the tensor before it" if info.offset < expected else "leaves a hole before it"
            raise InputError(
                f"{file}: tensor {shown(info.name)} {problem}: it starts at byte {info.offset - data_start}"
                f" of the data, expected {expected - data_start}"
            )
        expected += info.nbytes
    if expected > size:
        raise InputError(
            f"{file}: truncated: {expected - size} bytes are missing (the header promises {expected},"
            f" the file has {size}); get the file again"
        )
    if expected < size:
        raise InputError(
            f"{file}: {size - expected} bytes follow the last tensor (expected {expected} bytes, found {size})"
        )
