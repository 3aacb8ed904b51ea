"""Reads GGUF files: metadata as plain values, tensors dequantised a few rows at a time from the mapped file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError

INSTALL = "pip install ultramem-deploy[hf]"
_DAMAGED = (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, AttributeError)
_INTEGERS = {"I8", "I16", "I32", "I64"}


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as the file holds it: `data` is mapped, quantised blocks as bytes; `shape` counts numbers."""

    name: str
    shape: tuple[int, ...]
    kind: str
    data: np.ndarray[Any, Any]
    decode: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]

    def rows(self, index: slice | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The chosen rows of the first axis, float32."""
        return np.ascontiguousarray(self.decode(self.data[index]), dtype=np.float32)


class GGUFFile:
    """Metadata and tensors of one file. Raises InputError where it is damaged, or where `gguf` is not installed."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise InputError(f"{path}: reading GGUF files needs the gguf package; {INSTALL}") from None
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
            self._fields = reader.fields
            self.tensors = {tensor.name: _tensor(gguf, tensor) for tensor in reader.tensors}
        except _DAMAGED as error:
            raise InputError(f"{path}: not a whole GGUF file ({shown(str(error))}); get the file again") from None
        if reader.byte_order != "I":
            raise InputError(f"{path}: made for the other byte order; get a little-endian file")
        self._check_kinds()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._fields)

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python's own type."""
        if key not in self._fields:
            return default
        try:
            value = self._fields[key].contents()
        except _DAMAGED as error:
            raise InputError(f"{self.path}: key {shown(key)} cannot be read ({shown(str(error))})") from None
        return value.item() if isinstance(value, np.generic) else value

    def _check_kinds(self) -> None:
        """Every kind of quantisation can be decoded; tried on one row of each."""
        for kind, tensor in {tensor.kind: tensor for tensor in self.tensors.values()}.items():
            problem = "holds integers, not weights" if kind in _INTEGERS else _undecodable(tensor)
            if problem:
                raise InputError(
                    f"{self.path}: tensor {shown(tensor.name)} of type {kind} {problem};"
                    " expected F32, F16, BF16 or a quantisation that the gguf package decodes"
                )


def _tensor(gguf: Any, tensor: Any) -> GGUFTensor:
    kind = tensor.tensor_type

    def decode(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(gguf.quants.dequantize(data, kind))

    return GGUFTensor(tensor.name, tuple(int(size) for size in reversed(tensor.shape)), kind.name, tensor.data, decode)


def _undecodable(tensor: GGUFTensor) -> str | None:
    try:
        found = tensor.rows(slice(0, 1)).shape[1:]
    except NotImplementedError:
        return "cannot be decoded"
    expected = tensor.shape[1:]
    return None if found == expected else f"decodes to rows of shape {list(found)}, expected {list(expected)}"
