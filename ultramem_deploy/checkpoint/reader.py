"""Lazy reads of a safetensors checkpoint: one read-only memory map a file, opened when it is first needed."""

from __future__ import annotations

import contextlib
import difflib
import mmap
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ultramem_deploy.checkpoint.header import TensorInfo, itemsize, numpy_dtype, read_header, shown
from ultramem_deploy.checkpoint.index import locate
from ultramem_deploy.errors import InputError

if TYPE_CHECKING:
    import torch

_READ_FROM_BYTES = 512
"""Rows from this size on are read one by one: a fault for each costs several times as much, for it maps 64 KiB."""
_GATHERED_ROWS = 256
GATHER_BYTES = _GATHERED_ROWS * (64 << 10)
"""What a gather maps at a time: the kernel maps up to 64 KiB around every page that is touched."""


class Checkpoint:
    """The tensors of a checkpoint, by name. Make one with `Checkpoint.open`; safe to share between threads."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        self.path = path
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sorted(tensors.items())))
        self.files: tuple[Path, ...] = tuple(sorted({info.file for info in tensors.values()}))
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files itself."""
        return Checkpoint, (self.path, dict(self.tensors), dict(self.metadata))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Open a directory (index and shards, or one file) or one .safetensors file, reading headers alone.

        InputError names the file or tensor when a shard is missing, damaged, escapes the directory, or lacks a tensor
        that the index promises. Tensors that the index does not list are ignored.
        """
        where = Path(path)
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        for file, promised in sorted(locate(where).items()):
            found, more = read_header(file)
            metadata = more | metadata
            for name in found if promised is None else promised:
                if name not in found:
                    raise InputError(
                        f"{where}: the index promises tensor {shown(name)} in {file.name}, which does not hold it;"
                        " index and shards are of different versions, get both again"
                    )
                tensors[name] = found[name]
        return cls(where, tensors, metadata)

    def info(self, name: str) -> TensorInfo:
        """Where tensor `name` lies; InputError with the closest names when there is none."""
        if name in self.tensors:
            return self.tensors[name]
        close = difflib.get_close_matches(name, self.tensors, n=3, cutoff=0.5)
        hint = f"closest: {', '.join(map(shown, close))}" if close else f"it holds {len(self.tensors)} others"
        raise InputError(f"{self.path}: no tensor {shown(name)}; {hint}")

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The whole tensor as a read-only view of the file: no copy, pages are read as they are touched."""
        info = self.info(name)
        dtype = numpy_dtype(info.dtype)
        if info.nbytes == 0:
            empty = np.empty(info.shape, dtype)
            empty.flags.writeable = False
            return empty
        count = info.nbytes // dtype.itemsize
        return np.frombuffer(self._map(info.file), dtype, count, info.offset).reshape(info.shape)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows [start, stop) of the first axis as a read-only view; a 0-d tensor counts as one row."""
        info = self.info(name)
        _check_rows(info, start, stop)
        array = self.array(name)
        return (array if info.shape else array.reshape(1))[start:stop]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows [start, stop) as an array of the caller's own.

        Unlike `rows` it reads, not maps: resident memory stays at what the caller holds, however large the tensor.
        """
        info = self.info(name)
        _check_rows(info, start, stop)
        result = np.empty((stop - start, *info.shape[1:]), numpy_dtype(info.dtype))
        if result.nbytes:
            row_bytes = info.nbytes // (info.shape[0] if info.shape else 1)
            _read_into(info.file, info.offset + start * row_bytes, result.reshape(-1).view(np.uint8).data)
        return result

    def gather(self, name: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Rows of the first axis by number (int64 [n], in any order, repeats allowed) as an array of the caller's own.

        Resident memory stays at the result and at most about `GATHER_BYTES` beside it: long rows are read, short ones
        copied from mapped pages that are let go as it proceeds. Raises IndexError outside the tensor.
        """
        info = self.info(name)
        result = np.empty((len(rows), *info.shape[1:]), numpy_dtype(info.dtype))
        if not result.nbytes:
            return result
        _check_rows(info, int(rows.min()), int(rows.max()) + 1)
        # As bytes, so that numpy copies whole rows and without holding the interpreter.
        flat = result.view(np.uint8).reshape(len(rows), -1)
        if flat.shape[1] >= _READ_FROM_BYTES:
            _read_each(info, rows, flat)
            return result
        table = self.array(name).view(np.uint8).reshape(info.shape[0], -1)
        for start in range(0, len(rows), _GATHERED_ROWS):
            part = slice(start, start + _GATHERED_ROWS)
            np.take(table, rows[part], axis=0, out=flat[part], mode="clip")
            self._let_go(info)
        return result

    def torch(self, name: str) -> torch.Tensor:
        """The whole tensor as a torch.Tensor over the mapped file, without a copy.

        The memory is read-only: writing to the tensor in place kills the process, so clone first. A file that some
        other tool wrote with misaligned tensors is copied instead, because torch needs alignment.
        """
        import torch

        info = self.info(name)
        dtype = getattr(torch, info.dtype)
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        source, offset = self._map(info.file), info.offset
        if offset % itemsize(info.dtype):
            return torch.frombuffer(bytearray(source[offset : offset + info.nbytes]), dtype=dtype).reshape(info.shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(source, dtype=dtype, count=info.nbytes // itemsize(info.dtype), offset=offset)
        return flat.reshape(info.shape)

    def _let_go(self, info: TensorInfo) -> None:
        """Drop the tensor's pages from resident memory, as far as the kernel allows; they stay in its cache."""
        start = info.offset - info.offset % mmap.PAGESIZE
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._map(info.file).madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def _map(self, file: Path) -> mmap.mmap:
        with self._lock:
            if file not in self._maps:
                try:
                    with open(file, "rb") as stream:
                        self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:
                    raise InputError(f"{file}: cannot be mapped: {error}") from None
            return self._maps[file]


def _check_rows(info: TensorInfo, start: int, stop: int) -> None:
    count = info.shape[0] if info.shape else 1
    if not 0 <= start <= stop <= count:
        raise IndexError(f"rows [{start}, {stop}) of tensor {shown(info.name)}, which has {count}")


def _read_each(info: TensorInfo, rows: np.ndarray[Any, Any], result: np.ndarray[Any, Any]) -> None:
    """The bytes of each row of `rows` into its row of `result`, uint8 [n, bytes a row]."""
    size, whole = result.shape[1], result.reshape(-1).data
    places = (rows.astype(np.int64) * size + info.offset).tolist()
    try:
        with open(info.file, "rb", buffering=0) as stream:
            handle = stream.fileno()
            for start, place in zip(range(0, len(whole), size), places, strict=True):
                if os.preadv(handle, [whole[start : start + size]], place) != size:
                    _read_into(info.file, place, whole[start : start + size])
    except OSError as error:
        raise InputError(f"{info.file}: cannot be read: {error.strerror or error}") from None


def _read_into(file: Path, offset: int, buffer: memoryview) -> None:
    try:
        with open(file, "rb", buffering=0) as stream:
            stream.seek(offset)
            while buffer:
                count = stream.readinto(buffer)
                if not count:
                    raise InputError(
                        f"{file}: {len(buffer)} bytes short at byte {stream.tell()}; did it change meanwhile?"
                    )
                buffer = buffer[count:]
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
