"""State dicts that torch.save wrote, tensor by tensor from the file: no torch, no code run, nothing read ahead."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import itemsize, numpy_dtype, shown
from ultramem_deploy.errors import InputError

from .base import SourceTensor
from .pickled import (
    MAX_PICKLE_BYTES,
    STATE_DICT_GLOBALS,
    STORAGE_DTYPES,
    TORCH_DTYPES,
    Global,
    Persistent,
    Record,
    brief,
    read_pickle,
)

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_MAX_DIMS = 32
_MAX_MEMBERS = 1_000_000
_AGAIN = "get the file again"


@dataclass(frozen=True)
class Strided:
    """A tensor in a file: `shape` and `strides` in elements, the first element at byte `offset`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows [start, stop) of the first axis, an array of the caller's own; a 0-d tensor counts as one row."""
        shape, strides = (self.shape, self.strides) if self.shape else ((1,), (1,))
        shape = (stop - start, *shape[1:])
        if 0 in shape:
            return np.empty(shape, numpy_dtype(self.dtype))
        size = itemsize(self.dtype)
        span = 1 + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        flat = np.frombuffer(
            read_bytes(self.file, self.offset + start * strides[0] * size, span * size), numpy_dtype(self.dtype)
        )
        if _contiguous(shape, strides):
            return flat.reshape(shape)
        view = np.lib.stride_tricks.as_strided(flat, shape, [stride * size for stride in strides], writeable=False)
        return np.ascontiguousarray(view)


def read_bytes(file: Path, offset: int, count: int) -> bytearray:
    """Bytes of a file; InputError where it cannot be read or is too short."""
    data = bytearray(count)
    view = memoryview(data)
    try:
        with open(file, "rb", buffering=0) as stream:
            stream.seek(offset)
            while view:
                got = stream.readinto(view)
                if not got:
                    raise InputError(f"{file}: {len(view)} bytes short at byte {stream.tell()}; {_AGAIN}")
                view = view[got:]
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    return data


def read_state_dict(file: Path) -> dict[str, SourceTensor]:
    """The tensors of a `.pt` or `.pth` file by dotted name; nested dicts are joined, values of other kinds left out.

    InputError where it is no zip that torch.save wrote, damaged, or a pickle that could run code.
    """
    tensors: dict[str, SourceTensor] = {}
    _collect(str(file), read_object(file), "", tensors)
    if not tensors:
        raise InputError(f"{file}: holds no tensors; expected a state dict that torch.save wrote")
    return tensors


def read_object(file: Path, start: int = 0, length: int | None = None) -> Any:
    """What torch.save pickled at bytes [start, start+length) of a file, its tensors as `Strided`."""
    archive = _Archive(file, start, length)
    content = read_pickle(archive.pickle, str(file), STATE_DICT_GLOBALS)
    return _resolved(archive, content, 0)


def _collect(where: str, content: Any, prefix: str, tensors: dict[str, SourceTensor]) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, (dict, Strided)):
                _collect(where, value, f"{prefix}.{key}" if prefix else key, tensors)
        return
    if not isinstance(content, Strided):
        raise InputError(f"{where}: expected a state dict (name -> tensor), found {type(content).__name__}")
    if prefix in tensors:
        raise InputError(f"{where}: holds tensor {shown(prefix)} twice; {_AGAIN}")
    tensors[prefix] = SourceTensor(prefix, content.shape, content.dtype, content.rows)


def _resolved(archive: _Archive, value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        if depth > 8:
            raise InputError(f"{archive.file}: nested more than 8 deep; expected a state dict")
        return {key: _resolved(archive, item, depth + 1) for key, item in value.items()}
    if not isinstance(value, Record):
        return value
    if value.kind == "torch._utils._rebuild_parameter" and value.args:
        return _resolved(archive, value.args[0], depth + 1) if depth <= 8 else None
    if value.kind in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        return archive.tensor(value)
    return value


class _Archive:
    """The members of a zip that torch.save wrote: all stored, so that a tensor's bytes lie in the file as they are."""

    def __init__(self, file: Path, start: int, length: int | None) -> None:
        self.file, self.start = file, start
        members = self._members(length)
        names = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise InputError(f"{file}: not a file that torch.save wrote: {len(names)} data.pkl in it, expected one")
        self.root = names[0].removesuffix("data.pkl")
        self.members = members
        order = members.get(f"{self.root}byteorder")
        if order is not None and (order[1] != 6 or read_bytes(file, *order) != b"little"):
            raise InputError(f"{file}: written on a big-endian machine, which is not supported; save it on another")
        if members[names[0]][1] > MAX_PICKLE_BYTES:
            raise InputError(f"{file}: its pickle exceeds {MAX_PICKLE_BYTES} bytes; expected a state dict")
        self.pickle = bytes(read_bytes(file, *members[names[0]]))

    def _members(self, length: int | None) -> Mapping[str, tuple[int, int]]:
        """Name -> first byte and size of every member."""
        try:
            size = self.file.stat().st_size - self.start
            with open(self.file, "rb") as stream:
                window = _Window(stream, self.start, size if length is None else length)
                with zipfile.ZipFile(io.BufferedReader(window)) as archive:
                    infos = archive.infolist()
        except OSError as error:
            raise InputError(f"{self.file}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # zipfile raises half a dozen kinds for damaged directories
            raise InputError(
                f"{self.file}: not a zip file that torch.save wrote ({shown(str(error), 80)[1:-1]}); {_AGAIN}, or load"
                " it with the torch that wrote it and save it again"
            ) from None
        if len(infos) > _MAX_MEMBERS or len({info.filename for info in infos}) != len(infos):
            raise InputError(f"{self.file}: {len(infos)} members, some of one name; {_AGAIN}")
        return {info.filename: self._place(info, size) for info in infos}

    def _place(self, info: zipfile.ZipInfo, size: int) -> tuple[int, int]:
        name = shown(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise InputError(f"{self.file}: member {name} is compressed; torch.save never does that: save it again")
        head = self.start + info.header_offset
        if not 0 <= info.header_offset <= size - _LOCAL_HEADER.size:
            raise InputError(f"{self.file}: member {name} lies outside the file; {_AGAIN}")
        fields = _LOCAL_HEADER.unpack(read_bytes(self.file, head, _LOCAL_HEADER.size))
        offset = info.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        if fields[0] != b"PK\x03\x04" or offset + info.file_size > size:
            raise InputError(f"{self.file}: member {name} is damaged or truncated; {_AGAIN}")
        return self.start + offset, info.file_size

    def tensor(self, record: Record) -> Strided:
        """The place of a tensor from the arguments of `_rebuild_tensor_v2` (or v3, which names the dtype)."""
        args = record.args
        if len(args) < (7 if record.kind.endswith("v3") else 6):
            raise InputError(f"{self.file}: a tensor has {len(args)} fields; {_AGAIN}")
        dtype, place, count = self._storage(args[0], args[6] if record.kind.endswith("v3") else None)
        offset, shape, strides = args[1], sizes(args[2]), sizes(args[3])
        if shape is None or strides is None or len(shape) != len(strides) or sizes((offset,)) is None:
            raise InputError(f"{self.file}: a tensor of shape {brief(args[2])}, strides {brief(args[3])}; {_AGAIN}")
        elements = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        # More elements than the storage holds would be an expanded view, which a state dict has no use for.
        if elements > count or (elements and last >= count):
            raise InputError(
                f"{self.file}: a tensor of shape {list(shape)} does not fit its storage of {count} numbers; {_AGAIN}"
            )
        return Strided(self.file, dtype, shape, strides, place + offset * itemsize(dtype))

    def _storage(self, reference: Any, dtype: Any) -> tuple[str, int, int]:
        """dtype, first byte and number of elements of what a persistent id refers to."""
        pid = reference.value if isinstance(reference, Persistent) else None
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Global):
            raise InputError(f"{self.file}: a tensor refers to {brief(pid)}, expected a storage; {_AGAIN}")
        kind = STORAGE_DTYPES.get(pid[1].name)
        if isinstance(dtype, Global):
            kind = TORCH_DTYPES.get(dtype.name.removeprefix("torch."))
        if kind is None:
            raise InputError(f"{self.file}: a tensor of storage {shown(pid[1].name)} is not supported; convert it")
        member = self.members.get(f"{self.root}data/{pid[2]}") if isinstance(pid[2], str) else None
        if member is None:
            raise InputError(f"{self.file}: storage {brief(pid[2])} is missing; {_AGAIN}")
        return kind, member[0], member[1] // itemsize(kind)


class _Window(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, stream: Any, start: int, length: int) -> None:
        self.stream, self.start, self.length, self.at = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self.at = base + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.length - self.at)]
        self.stream.seek(self.start + self.at)
        got = int(self.stream.readinto(view)) if view else 0
        self.at += got
        return got


def sizes(value: Any) -> tuple[int, ...] | None:
    """Sizes as tuple, `torch.Size` included; None where they are none."""
    if isinstance(value, Record) and value.kind == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_DIMS:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item < 2**62 for item in value) else None


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for count, stride in zip(reversed(shape), reversed(strides), strict=True):
        if count != 1 and stride != expected:
            return False
        expected *= count
    return True
