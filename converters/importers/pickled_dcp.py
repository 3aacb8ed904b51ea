"""Directories that torch.distributed.checkpoint wrote: `.metadata`, read as data, and tensors in pieces."""

from __future__ import annotations

import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint.header import numpy_dtype, shown
from ultramem_deploy.checkpoint.index import inside
from ultramem_deploy.errors import InputError

from .base import SourceTensor
from .pickled import MAX_PICKLE_BYTES, TORCH_DTYPES, Global, Record, brief, read_pickle
from .pickled_zip import Strided, read_object, sizes

METADATA = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_GLOBALS = frozenset(
    {
        *(
            f"{_METADATA}.{name}"
            for name in (
                "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
                "TensorProperties", "MetadataIndex", "_MEM_FORMAT_ENCODING", "StorageMeta",
            )
        ),
        f"{_FILESYSTEM}._StorageInfo",
        f"{_FILESYSTEM}._StoragePrefix",
        "torch.serialization._get_layout",
        "torch.Size",
        "torch.device",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
        "collections.OrderedDict",
        "builtins.getattr",  # as Python 3.11.0 to 3.11.3 pickle a member of an enumeration
    }
)  # fmt: skip


@dataclass(frozen=True)
class _Piece:
    """The part of a tensor from `offsets`, of `shape`: a file that torch.save wrote, within a file."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: Path
    start: int
    length: int


def is_dcp(directory: Path) -> bool:
    """Whether a directory is of torch.distributed.checkpoint."""
    return (directory / METADATA).is_file()


def read_dcp(directory: Path, skip: tuple[str, ...] = ("optim.",)) -> dict[str, SourceTensor]:
    """The tensors of a DCP directory by name, but for those whose names start with `skip`: from `.metadata` alone.

    InputError where it is damaged, names a file outside the directory, or a tensor's pieces do not cover it.
    """
    file = inside(directory, METADATA)
    if file.stat().st_size > MAX_PICKLE_BYTES:
        raise InputError(f"{file}: {file.stat().st_size} bytes, at most {MAX_PICKLE_BYTES} are read")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    metadata = read_pickle(data, str(file), _GLOBALS)
    described = _field(file, metadata, "Metadata", "state_dict_metadata", dict)
    places = _places(directory, file, _field(file, metadata, "Metadata", "storage_data", dict))
    tensors = {}
    for name, record in described.items():
        if isinstance(name, str) and not name.startswith(skip) and _kind(record) == "TensorStorageMetadata":
            tensors[name] = _tensor(file, name, record, places)
    if not tensors:
        raise InputError(f"{file}: describes no tensors; expected a model that torch.distributed.checkpoint wrote")
    return tensors


def _kind(record: Any) -> str:
    return record.kind.rpartition(".")[2] if isinstance(record, Record) else type(record).__name__


def _field(file: Path, record: Any, kind: str, name: str, expected: type) -> Any:
    state = record.state if isinstance(record, Record) else None
    value = state.get(name) if isinstance(state, dict) else None
    if _kind(record) != kind or not isinstance(value, expected):
        raise InputError(
            f"{file}: expected {kind}.{name} to be {expected.__name__}, found {_kind(record)} with"
            f" {type(value).__name__}; torch.distributed.checkpoint of another version, or a damaged file"
        )
    return value


_Places = dict[str, dict[tuple[int, ...] | None, tuple[Path, int, int]]]


def _places(directory: Path, file: Path, storage: dict[Any, Any]) -> _Places:
    """Tensor name -> offsets of a piece -> file, first byte, bytes."""
    places: _Places = defaultdict(dict)
    files: dict[str, Path] = {}
    for index, info in storage.items():
        name = _field(file, index, "MetadataIndex", "fqn", str)
        state = index.state
        path = _field(file, info, "_StorageInfo", "relative_path", str)
        start = _field(file, info, "_StorageInfo", "offset", int)
        length = _field(file, info, "_StorageInfo", "length", int)
        if info.state.get("transform_descriptors"):
            raise InputError(f"{file}: tensor {shown(name)} is stored compressed or encrypted; save it without")
        if start < 0 or length < 0:
            raise InputError(f"{file}: tensor {shown(name)}: {length} bytes at {start}; the file is damaged")
        if path not in files:
            files[path] = inside(directory, path)
        places[name][sizes(state.get("offset"))] = (files[path], start, length)
    return places


def _tensor(file: Path, name: str, record: Any, places: _Places) -> SourceTensor:
    where = f"{file}: tensor {shown(name)}"
    properties = _field(file, record, "TensorStorageMetadata", "properties", Record)
    shape = sizes(record.state.get("size"))
    dtype = _dtype(properties.state)
    if shape is None or dtype is None:
        raise InputError(f"{where}: size {brief(record.state.get('size'))} or dtype is unknown; the file is damaged")
    pieces = []
    listed = _field(file, record, "TensorStorageMetadata", "chunks", list)
    for chunk in listed:
        offsets, extent = (sizes(_field(file, chunk, "ChunkStorageMetadata", key, Record)) for key in _CHUNK)
        # Older writers give a tensor in one piece no offset.
        place = places.get(name, {}).get(offsets) or (places.get(name, {}).get(None) if len(listed) == 1 else None)
        if offsets is None or extent is None or place is None or not len(offsets) == len(extent) == len(shape):
            raise InputError(f"{where}: a piece has no place in any file; the directory is incomplete")
        pieces.append(_Piece(offsets, extent, *place))
    _check_cover(where, shape, pieces)
    return SourceTensor(name, shape, dtype, _Pieces(where, shape, dtype, tuple(pieces)).rows)


_CHUNK = ("offsets", "sizes")


def _dtype(state: Any) -> str | None:
    """From TensorProperties, pickled as a tuple or (later) as a dict."""
    found = state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) and state else None
    return TORCH_DTYPES.get(found.name.removeprefix("torch.")) if isinstance(found, Global) else None


def _check_cover(where: str, shape: tuple[int, ...], pieces: Sequence[_Piece]) -> None:
    """Disjoint pieces within the tensor, as many numbers as it has: they cover it."""
    inside_all = all(
        at + size <= full for piece in pieces for at, size, full in zip(piece.offsets, piece.shape, shape, strict=True)
    )
    total = sum(_count(piece.shape) for piece in pieces)
    # Pieces sorted by their first row can only overlap those that start before they end.
    ordered = sorted((p for p in pieces if _count(p.shape)), key=lambda piece: piece.offsets)
    clash = any(
        _overlap(one, two)
        for number, one in enumerate(ordered)
        for two in itertools.takewhile(
            lambda two, one=one: not shape or two.offsets[0] < one.offsets[0] + one.shape[0],  # type: ignore[misc]
            itertools.islice(ordered, number + 1, None),
        )
    )
    if not inside_all or clash or total != _count(shape):
        raise InputError(
            f"{where}: {len(pieces)} pieces hold {total} numbers of {_count(shape)}"
            f"{', some twice' if clash else ''}; the directory is incomplete"
        )


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _overlap(one: _Piece, two: _Piece) -> bool:
    return all(
        max(a, b) < min(a + m, b + n) for a, m, b, n in zip(one.offsets, one.shape, two.offsets, two.shape, strict=True)
    )


class _Pieces:
    """Assembles rows of a tensor from its pieces; each piece's own header is read when it is first needed."""

    def __init__(self, where: str, shape: tuple[int, ...], dtype: str, pieces: tuple[_Piece, ...]) -> None:
        self.where, self.shape, self.dtype, self.pieces = where, shape, dtype, pieces
        self._open: dict[int, Strided] = {}
        self._lock = threading.Lock()

    def rows(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        if not self.shape:
            return self._strided(0).rows(start, stop)
        result = np.empty((stop - start, *self.shape[1:]), numpy_dtype(self.dtype))
        for number, piece in enumerate(self.pieces):
            first, last = max(start, piece.offsets[0]), min(stop, piece.offsets[0] + piece.shape[0])
            if first < last and _count(piece.shape):
                own = self._strided(number).rows(first - piece.offsets[0], last - piece.offsets[0])
                other = tuple(slice(a, a + n) for a, n in zip(piece.offsets[1:], piece.shape[1:], strict=True))
                result[(slice(first - start, last - start), *other)] = own
        return result

    def _strided(self, number: int) -> Strided:
        with self._lock:
            if number not in self._open:
                piece = self.pieces[number]
                found = read_object(piece.file, piece.start, piece.length)
                if not isinstance(found, Strided) or (found.shape, found.dtype) != (piece.shape, self.dtype):
                    shape = f"{found.dtype} {list(found.shape)}" if isinstance(found, Strided) else "no tensor"
                    raise InputError(
                        f"{self.where}: {piece.file.name} holds {shape} at byte {piece.start}, expected {self.dtype}"
                        f" {list(piece.shape)}; pieces of different saves, get the directory again"
                    )
                self._open[number] = found
            return self._open[number]
