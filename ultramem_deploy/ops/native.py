"""The native kernels of this package on PyTorch's CPU tensors, through their plain C functions and PyTorch's threads.

Used where no gradient is asked for and the library is installed; else the reference of each operator runs. Set
ULTRAMEM_TORCH_KERNELS=0 to have the reference always.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_int, c_int32, c_int64, c_uint, c_void_p
from functools import cache

import torch

VARIABLE = "ULTRAMEM_TORCH_KERNELS"
ACTIVATION_TYPES = {torch.float32: 0, torch.float16: 1}
TABLE_TYPES = {**ACTIVATION_TYPES, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4, torch.float8_e4m3fn: 5}
OK, BAD_ADDRESS = 0, 1
READ_AHEAD: set[int] = set()
"""Where tables begin whose rows may lie on a disk; `placement` keeps it."""


class Status(Structure):
    """UltramemStatus."""

    _fields_ = (("code", c_int), ("token", c_int64), ("slot", c_int64), ("address", c_int64))


class Table(Structure):
    """UltramemTable."""

    _fields_ = (
        ("data", c_void_p),
        ("type", c_int),
        ("rows", c_int64),
        ("width", c_int64),
        ("row_stride", c_int64),
        ("scales", c_void_p),
        ("read_ahead", c_int32),
    )


class Lookup(Structure):
    """UltramemSparseLookup."""

    _fields_ = (
        ("table", Table),
        *((name, c_void_p) for name in ("addresses", "scores", "output")),
        ("type", c_int),
        *((name, c_int64) for name in ("tokens", "slots", "cores", "blocks")),
    )


class Gate(Structure):
    """UltramemSparseGate."""

    _fields_ = (
        ("table", Table),
        *((name, c_void_p) for name in ("addresses", "x", "gate")),
        ("type", c_int),
        *((name, c_int64) for name in ("tokens", "slots", "x_width")),
        ("activation", c_int),
    )


class TopK(Structure):
    """UltramemTuckerTopK."""

    _fields_ = (
        *((name, c_void_p) for name in ("row_scores", "col_scores", "u", "v", "core", "scores", "indices")),
        ("type", c_int),
        *((name, c_int64) for name in ("tokens", "heads", "rank", "n_row", "n_col", "cores", "k")),
    )


class Threads(Structure):
    """UltramemThreads."""

    _fields_ = (("parallel_for", c_void_p), ("host", c_void_p), ("count", c_int64))


class OpenMp(Structure):
    """UltramemOpenMp."""

    _fields_ = (("parallel", c_void_p), ("threads", c_uint))


class Kernels:
    """The functions of one loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.lookup = _function(library.ultramem_sparse_lookup_run, Lookup)
        self.gate = _function(library.ultramem_sparse_gate_run, Gate)
        self.topk = _function(library.ultramem_tucker_topk_run, TopK)
        # PyTorch's own OpenMP: threads of ours would compete with its threads for the same cores.
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self._openmp = OpenMp(ctypes.cast(parallel, c_void_p) if parallel else None, 1)
        team = ctypes.cast(library.ultramem_openmp_for, c_void_p) if parallel else None
        self._threads = Threads(team, ctypes.cast(ctypes.pointer(self._openmp), c_void_p), 1)

    def run(self, function: Callable[..., Status], problem: Structure) -> Status:
        """Run a problem on as many threads as PyTorch uses."""
        self._openmp.threads = self._threads.count = torch.get_num_threads()
        return function(byref(problem), byref(self._threads))


def _function(function: Callable[..., Status], problem: type[Structure]) -> Callable[..., Status]:
    function.restype = Status  # type: ignore[attr-defined]
    function.argtypes = (POINTER(problem), POINTER(Threads))  # type: ignore[attr-defined]
    return function


@cache
def kernels() -> Kernels | None:
    """The installed library's kernels; None where there are none, or the environment says no."""
    from ..errors import InputError
    from ..runtime.plugins import library_info, ort_library

    if os.environ.get(VARIABLE) == "0":
        return None
    try:
        path = ort_library()
        library_info(path)
        return Kernels(ctypes.CDLL(str(path.resolve())))
    except (InputError, AttributeError):
        return None


def usable(table: torch.Tensor | None, activations: tuple[torch.Tensor, ...], *others: torch.Tensor | None) -> bool:
    """Whether the kernels take these tensors: eager, on the CPU, dense, of their types, and no gradient wanted."""
    tensors = [x for x in (table, *activations, *others) if x is not None]
    return (
        not torch.compiler.is_compiling()
        and all(type(x) in _PLAIN and x.device.type == "cpu" for x in tensors)
        and (table is None or (table.dtype in TABLE_TYPES and table.ndim == 2 and table.is_contiguous()))
        and activations[0].dtype in ACTIVATION_TYPES
        and all(x.dtype == activations[0].dtype for x in activations)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and torch._C._len_torch_dispatch_stack() == 0
        and kernels() is not None
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def sparse_lookup(
    table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int, scales: torch.Tensor | None
) -> torch.Tensor | None:
    """Sums [T, blocks*D] in the dtype of `scores`, or None where an address is bad."""
    tokens, slots, cores = scores.shape
    addresses, scores = addresses.contiguous(), scores.contiguous()
    described = _table(table, scales)
    output = scores.new_empty((tokens, blocks * described.width))
    problem = Lookup(
        described,
        addresses.data_ptr(),
        scores.data_ptr(),
        output.data_ptr(),
        ACTIVATION_TYPES[scores.dtype],
        *(tokens, slots, cores, blocks),
    )
    return output if _run("SparseLookup", "lookup", problem) else None


def sparse_gate(
    table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor, activation: int, scales: torch.Tensor | None
) -> torch.Tensor | None:
    """Gate [T, K] in the dtype of `x`, or None where an address is bad."""
    tokens, slots = addresses.shape
    addresses, x = addresses.contiguous(), x.contiguous()
    gate = x.new_empty((tokens, slots))
    problem = Gate(
        _table(table, scales),
        addresses.data_ptr(),
        x.data_ptr(),
        gate.data_ptr(),
        ACTIVATION_TYPES[x.dtype],
        *(tokens, slots, x.shape[1], activation),
    )
    return gate if _run("SparseGate", "gate", problem) else None


def tucker_topk(
    row: torch.Tensor, col: torch.Tensor, u: torch.Tensor, v: torch.Tensor, core: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [T, H*k, M] and virtual indices [T, H*k]."""
    tokens, heads, rank, n_row = row.shape
    inputs = [x.contiguous() for x in (row, col, u, v, core)]
    scores = row.new_empty((tokens, heads * k, core.shape[0]))
    indices = row.new_empty((tokens, heads * k), dtype=torch.int64)
    problem = TopK(
        *(x.data_ptr() for x in (*inputs, scores, indices)),
        ACTIVATION_TYPES[row.dtype],
        *(tokens, heads, rank, n_row, col.shape[3], core.shape[0], k),
    )
    _run("TuckerTopK", "topk", problem)
    return scores, indices


def _table(table: torch.Tensor, scales: torch.Tensor | None) -> Table:
    width = table.shape[1] * (2 if table.dtype == torch.uint8 else 1)
    pointer = None if scales is None else scales.data_ptr()
    data = table.data_ptr()
    return Table(data, TABLE_TYPES[table.dtype], table.shape[0], width, width, pointer, data in READ_AHEAD)


def _run(operator: str, name: str, problem: Structure) -> bool:
    loaded = kernels()
    if loaded is None:
        raise RuntimeError(f"{operator}: the kernels are gone")
    status = loaded.run(getattr(loaded, name), problem)
    if status.code not in (OK, BAD_ADDRESS):
        raise ValueError(f"{operator}: the kernel refuses these shapes (code {status.code})")
    return bool(status.code == OK)
