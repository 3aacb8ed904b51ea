"""Places a mapped table where the kernels read it best, through plugins/kernels/ultramem_tables.h."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, Structure, byref, c_char, c_int, c_int32, c_size_t, c_void_p
from functools import cache

import torch

from ..errors import InputError
from ..tables import MODES
from . import native


class Place(Structure):
    """UltramemPlace."""

    _fields_ = (("data", c_void_p), ("read_ahead", c_int32), ("copy", c_void_p))


@cache
def _library() -> ctypes.CDLL | None:
    loaded = native.kernels()
    if loaded is None:
        return None
    library = loaded.library
    library.ultramem_place.argtypes = (c_void_p, c_size_t, c_int, POINTER(Place))
    library.ultramem_place.restype = c_int
    library.ultramem_release.argtypes = (POINTER(Place),)
    library.ultramem_release.restype = None
    return library


def placed(name: str, table: torch.Tensor, mode: str) -> torch.Tensor:
    """The tensor `table` [N, ...] or a copy of its numbers elsewhere, as `mode` wants it (see `tables`).

    A tensor that is no part of a mapped file, or not on the CPU, is returned as it is, as is every tensor under "auto"
    where the kernels are not there. Raises InputError where "resident" does not fit, or there are no kernels for a mode
    that is asked for by name; `name` is for the message.
    """
    if table.device.type != "cpu" or table.nbytes == 0:
        return table
    library = _library()
    if library is None:
        if mode == MODES[0]:
            return table
        raise InputError(f"tables={mode}: the native kernels are not there; `ultramem-deploy doctor` says why")
    place = Place()
    if library.ultramem_place(table.data_ptr(), table.nbytes, MODES.index(mode), byref(place)):
        raise InputError(
            f"{name}: tables=resident needs {table.nbytes / 1e9:.1f} GB and they do not fit into the memory that is "
            "available; use tables=mapped"
        )
    return _over(place, library, table) if place.copy or place.read_ahead else table


def _over(place: Place, library: ctypes.CDLL, table: torch.Tensor) -> torch.Tensor:
    """A tensor of the place's memory, which is given back when the tensor's storage goes."""
    memory = (c_char * table.nbytes).from_address(place.data)
    # A copy needs the file no longer; the file's own pages do.
    weakref.finalize(memory, _release, library, place, None if place.copy else table)
    if place.read_ahead:
        native.READ_AHEAD.add(place.data)
    return torch.frombuffer(memory, dtype=table.dtype).view(table.shape)


def _release(library: ctypes.CDLL, place: Place, _held: torch.Tensor | None) -> None:
    native.READ_AHEAD.discard(place.data)
    library.ultramem_release(byref(place))
