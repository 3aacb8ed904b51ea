"""The native kernels of this package on PyTorch's CPU tensors, through their plain C functions and PyTorch's threads.

Used where no gradient is asked for and the library is installed; else the reference of each operator runs. Set
ULTRAMEM_TORCH_KERNELS=0 to have the reference always.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import Structure, c_char_p, c_int, c_int64, c_uint, c_void_p
from functools import cache
from struct import Struct

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


# The problems' C layouts, packed at once: a ctypes structure of so many fields takes longer than a small lookup.
TABLE = "PiqqqPi4x"  # UltramemTable: data, type, rows, width, row stride, scales, read_ahead
LOOKUP = Struct(f"@{TABLE}PPPiqqqq")  # UltramemSparseLookup
GATE = Struct(f"@{TABLE}PPPiqqqi4x")  # UltramemSparseGate
TOPK = Struct("@PPPPPPPiqqqqqqq")  # UltramemTuckerTopK
_DESCRIBED = Struct(f"@{TABLE}")


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
        library.ultramem_cpu_isa.restype = c_char_p
        self.isa: str = library.ultramem_cpu_isa().decode()
        self.lookup = _function(library.ultramem_sparse_lookup_run)
        self.gate = _function(library.ultramem_sparse_gate_run)
        self.topk = _function(library.ultramem_tucker_topk_run)
        self.attention = _function(library.ultramem_attention_run)
        self.linear = _function(library.ultramem_linear_run)
        self.read_ahead = _request(library.ultramem_read_ahead)
        self.ask_ahead = _request(library.ultramem_ask_ahead)
        # PyTorch's own OpenMP: threads of ours would compete with its threads for the same cores.
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self._openmp = OpenMp(ctypes.cast(parallel, c_void_p) if parallel else None, 1)
        team = ctypes.cast(library.ultramem_openmp_for, c_void_p) if parallel else None
        self._threads = Threads(team, ctypes.cast(ctypes.pointer(self._openmp), c_void_p), 1)
        self._host = ctypes.addressof(self._threads)

    def run(self, function: Callable[..., Status], problem: bytes) -> Status:
        """Run a packed problem on as many threads as PyTorch uses."""
        threads = torch.get_num_threads()
        if threads != self._threads.count:
            self._openmp.threads = self._threads.count = threads
        return function(problem, self._host)


def _function(function: Callable[..., Status]) -> Callable[..., Status]:
    function.restype = Status  # type: ignore[attr-defined]
    function.argtypes = (c_char_p, c_void_p)  # type: ignore[attr-defined]
    return function


def _request(function: Callable[..., None]) -> Callable[..., None]:
    function.restype = None  # type: ignore[attr-defined]
    function.argtypes = (c_char_p, c_void_p, c_int64)  # type: ignore[attr-defined]
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
    """Whether the kernels take these tensors: eager, on the CPU, dense, of their types, and no gradient wanted.

    In few steps: a small lookup takes less time than checks that are written for the eye alone.
    """
    dtype, gradients = activations[0].dtype, torch.is_grad_enabled()
    if torch.compiler.is_compiling() or dtype not in ACTIVATION_TYPES:
        return False
    for x in activations:
        if x.dtype is not dtype or not is_plain(x, gradients):
            return False
    for other in others:
        if other is not None and not is_plain(other, gradients):
            return False
    if table is not None and not (
        is_plain(table, gradients) and table.dtype in TABLE_TYPES and table.ndim == 2 and table.is_contiguous()
    ):
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and kernels() is not None


def is_plain(x: torch.Tensor, gradients: bool) -> bool:
    """Whether a kernel may take the tensor's memory: no subclass, on the CPU, no gradient wanted."""
    return type(x) in _PLAIN and x.is_cpu and not (gradients and x.requires_grad)


_PLAIN = {torch.Tensor, torch.nn.Parameter}


def sparse_lookup(
    table: torch.Tensor, addresses: torch.Tensor, scores: torch.Tensor, blocks: int, scales: torch.Tensor | None
) -> torch.Tensor | None:
    """Sums [T, blocks*D] in the dtype of `scores`, or None where an address is bad."""
    tokens, slots, cores = scores.shape
    addresses, scores = addresses.contiguous(), scores.contiguous()
    described = _table(table, scales)
    output = scores.new_empty(tokens, blocks * described[3])
    pointers = addresses.data_ptr(), scores.data_ptr(), output.data_ptr()
    sizes = tokens, slots, cores, blocks
    problem = LOOKUP.pack(*described, *pointers, ACTIVATION_TYPES[scores.dtype], *sizes)
    return output if run("SparseLookup", "lookup", problem) else None


def sparse_gate(
    table: torch.Tensor, addresses: torch.Tensor, x: torch.Tensor, activation: int, scales: torch.Tensor | None
) -> torch.Tensor | None:
    """Gate [T, K] in the dtype of `x`, or None where an address is bad."""
    tokens, slots = addresses.shape
    addresses, x = addresses.contiguous(), x.contiguous()
    gate = x.new_empty(tokens, slots)
    pointers = addresses.data_ptr(), x.data_ptr(), gate.data_ptr()
    sizes = tokens, slots, x.shape[1], activation
    problem = GATE.pack(*_table(table, scales), *pointers, ACTIVATION_TYPES[x.dtype], *sizes)
    return gate if run("SparseGate", "gate", problem) else None


def tucker_topk(
    row: torch.Tensor, col: torch.Tensor, u: torch.Tensor, v: torch.Tensor, core: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [T, H*k, M] and virtual indices [T, H*k]."""
    tokens, heads, rank, n_row = row.shape
    inputs = [x.contiguous() for x in (row, col, u, v, core)]
    scores = row.new_empty(tokens, heads * k, core.shape[0])
    indices = row.new_empty((tokens, heads * k), dtype=torch.int64)
    pointers = [x.data_ptr() for x in (*inputs, scores, indices)]
    sizes = tokens, heads, rank, n_row, col.shape[3], core.shape[0], k
    run("TuckerTopK", "topk", TOPK.pack(*pointers, ACTIVATION_TYPES[row.dtype], *sizes))
    return scores, indices


def read_ahead(table: torch.Tensor, addresses: torch.Tensor) -> None:
    """Ask the system for the rows of addresses int64 [T, K], where the table may lie on a disk; waits for no row."""
    loaded = kernels()
    if loaded is not None and is_read_ahead(table):
        _ask(loaded.read_ahead, table, addresses)


def ask_ahead(table: torch.Tensor, addresses: torch.Tensor) -> None:
    """As `read_ahead`, from a thread of the library's own: returns at once, also where the disk's queue is full."""
    loaded = kernels()
    if loaded is not None and is_read_ahead(table):
        _ask(loaded.ask_ahead, table, addresses)


def is_read_ahead(table: torch.Tensor) -> bool:
    """Whether rows of this table may lie on a disk, and are asked for before they are read."""
    return not torch.compiler.is_compiling() and table.is_cpu and table.data_ptr() in READ_AHEAD


def _ask(function: Callable[..., None], table: torch.Tensor, addresses: torch.Tensor) -> None:
    addresses = addresses.contiguous()
    function(_DESCRIBED.pack(*_table(table, None)), addresses.data_ptr(), addresses.numel())


def _table(table: torch.Tensor, scales: torch.Tensor | None) -> tuple[int, int, int, int, int, int, bool]:
    """The fields of `TABLE`."""
    rows, columns = table.shape
    width = 2 * columns if table.dtype == torch.uint8 else columns
    data = table.data_ptr()
    scale = 0 if scales is None else scales.data_ptr()
    return data, TABLE_TYPES[table.dtype], rows, width, width, scale, data in READ_AHEAD


def run(operator: str, name: str, problem: bytes) -> bool:
    """Run the kernel `name` on a packed problem; False where an address is bad."""
    loaded = kernels()
    if loaded is None:
        raise RuntimeError(f"{operator}: the kernels are gone")
    status = loaded.run(getattr(loaded, name), problem)
    if status.code not in (OK, BAD_ADDRESS):
        raise ValueError(f"{operator}: the kernel refuses these shapes (code {status.code})")
    return bool(status.code == OK)
