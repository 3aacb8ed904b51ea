"""Writes the file that torch.save would write for a state dict, as a stream of chunks and without torch."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.files import fsync_directory, require_space, write_failed
from ultramem_deploy.checkpoint.header import itemsize, shown
from ultramem_deploy.checkpoint.writer import chunk_grid
from ultramem_deploy.errors import InputError

_ALIGNMENT = 64
_ZIP64_FIELD = 20
_ZIP64_FROM = 1 << 31
_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


def write_torch_file(path: Path, tasks: Sequence[TensorTask], on_bytes: Callable[[int], None] | None = None) -> None:
    """Write `tasks` in their order; `torch.load(path, mmap=True, weights_only=True)` reads the file.

    It appears under its name when it is whole and synced. InputError for a dtype that no old storage has, or a full
    disk; `on_bytes` gets the size of each piece written.
    """
    needed = sum(task.nbytes for task in tasks)
    require_space(path.parent, needed, path.name)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as stream:
            _write(stream, path.stem, tasks, on_bytes)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise write_failed(path, error, needed) from None
    finally:
        temporary.unlink(missing_ok=True)


def _write(stream: BinaryIO, root: str, tasks: Sequence[TensorTask], on_bytes: Callable[[int], None] | None) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, size: int) -> zipfile.ZipInfo:
            info = zipfile.ZipInfo(f"{root}/{name}", (1980, 1, 1, 0, 0, 0))
            large = _ZIP64_FIELD if size >= _ZIP64_FROM else 0
            start = stream.tell() + 30 + len(info.filename) + large + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            return info

        for name, data in (("data.pkl", _pickled(tasks)), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(member(name, len(data)), data)
        for number, task in enumerate(tasks):
            info = member(f"data/{number}", task.nbytes)
            with archive.open(info, "w", force_zip64=task.nbytes >= _ZIP64_FROM) as target:
                for start, stop in chunk_grid(task.shape, itemsize(task.dtype)):
                    piece = np.ascontiguousarray(task.rows(start, stop)).reshape(-1).view(np.uint8).data
                    target.write(piece)
                    if on_bytes is not None:
                        on_bytes(len(piece))


def _pickled(tasks: Sequence[TensorTask]) -> bytes:
    """An OrderedDict of tensors, each with a storage of its own, in the operations that torch.save uses."""
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [pickle.PROTO + b"\x02", empty, pickle.MARK]
    for number, task in enumerate(tasks):
        storage = _STORAGES.get(task.dtype)
        if storage is None:
            raise InputError(
                f"tensor {shown(task.name)}: holds {task.dtype}, expected one of {', '.join(_STORAGES)}; write the"
                " unquantised model"
            )
        count = task.nbytes // itemsize(task.dtype)
        reference = _text("storage") + f"ctorch\n{storage}\n".encode() + _text(str(number)) + _text("cpu")
        place = pickle.MARK + reference + _integer(count) + pickle.TUPLE + pickle.BINPERSID
        sizes = _integer(0) + _tuple(task.shape) + _tuple(_strides(task.shape))
        parts += [
            _text(task.name),
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            pickle.MARK + place + sizes + pickle.NEWFALSE + empty + pickle.TUPLE + pickle.REDUCE,
        ]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides[: len(shape)]))


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def _tuple(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE
