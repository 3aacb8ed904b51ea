"""The CUDA kernels' C API (plugins/kernels/cuda/ultramem_cuda.h) for tests and benchmarks: torch tensors in and out.

The library is `libultramem_cuda.so` with tensors on the GPU, or the same sources compiled for the host
(tests/plugins/cuda_on_host) with tensors on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch

ACTIVATIONS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ENCODED = {1: 3, 2: 4, 3: 5}  # of an operator's `encoding` to UltramemType
INT4 = 2

P, L, E = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Table(ctypes.Structure):
    """UltramemTable."""

    _fields_ = (
        *(("data", P), ("type", E), ("rows", L), ("width", L), ("row_stride", L), ("scales", P)),
        ("read_ahead", ctypes.c_int32),  # 0: the CPU kernels alone read from disks
    )


class Lookup(ctypes.Structure):
    """UltramemSparseLookup."""

    _fields_ = (
        *(("table", Table), ("addresses", P), ("scores", P), ("output", P), ("type", E)),
        *((name, L) for name in ("tokens", "slots", "cores", "blocks")),
    )


class Gate(ctypes.Structure):
    """UltramemSparseGate."""

    _fields_ = (
        *(("table", Table), ("addresses", P), ("x", P), ("gate", P), ("type", E)),
        *((name, L) for name in ("tokens", "slots", "x_width")),
        ("activation", E),
    )


class TopK(ctypes.Structure):
    """UltramemTuckerTopK."""

    _fields_ = (
        *((name, P) for name in ("row", "col", "u", "v", "core", "scores", "indices")),
        ("type", E),
        *((name, L) for name in ("tokens", "heads", "rank", "n_row", "n_col", "cores", "k")),
    )


class Launch(ctypes.Structure):
    """UltramemLaunch."""

    _fields_ = (("code", E), ("cuda_error", E))


class CudaLibrary:
    """Runs the operators by the C API. Inputs are contiguous and named as in the operators' definitions.

    Every method only launches, on the current stream where the tensors are CUDA's, and raises RuntimeError where the
    library refuses the problem. Outputs are filled with NaN (indices with -1) first; `poison=False` saves the time.
    """

    def __init__(self, path: Path, poison: bool = True) -> None:
        self._library, self._poison = ctypes.CDLL(str(path)), poison
        for name in ("tucker_topk", "sparse_gate", "sparse_lookup"):
            getattr(self._library, f"ultramem_cuda_{name}").restype = Launch
        self._library.ultramem_cuda_tucker_topk_workspace.restype = ctypes.c_size_t

    def sparse_lookup(
        self, inputs: Mapping[str, torch.Tensor], blocks: int, encoding: int = 0, lanes: int = 0
    ) -> torch.Tensor:
        """[T, E*D]"""
        table, scores = _table(inputs, encoding), inputs["scores"]
        tokens, slots, cores = scores.shape
        output = self._output((tokens, blocks * table.width), scores)
        problem = Lookup(
            table, inputs["addresses"].data_ptr(), scores.data_ptr(), output.data_ptr(), ACTIVATIONS[scores.dtype]
        )
        problem.tokens, problem.slots, problem.cores, problem.blocks = tokens, slots, cores, blocks
        self._launch("sparse_lookup", problem, ctypes.c_int32(lanes), _stream(scores))
        return output

    def sparse_gate(self, inputs: Mapping[str, torch.Tensor], activation: int, encoding: int = 0) -> torch.Tensor:
        """[T, K]"""
        x, addresses = inputs["x"], inputs["addresses"]
        gate = self._output(tuple(addresses.shape), x)
        pointers = addresses.data_ptr(), x.data_ptr(), gate.data_ptr()
        problem = Gate(_table(inputs, encoding), *pointers, ACTIVATIONS[x.dtype], *addresses.shape, x.shape[1])
        problem.activation = activation
        self._launch("sparse_gate", problem, _stream(x))
        return gate

    def tucker_topk(self, inputs: Mapping[str, torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H*k, M] and int64 [T, H*k]"""
        row, core = inputs["row_scores"], inputs["core"]
        tokens, heads, rank, n_row = row.shape
        scores = self._output((tokens, heads * k, core.shape[0]), row)
        indices = torch.empty((tokens, heads * k), dtype=torch.int64, device=row.device)
        if self._poison:
            indices.fill_(-1)
        names = ("row_scores", "col_scores", "u", "v", "core")
        pointers = [*(inputs[name].data_ptr() for name in names), scores.data_ptr(), indices.data_ptr()]
        sizes = (tokens, heads, rank, n_row, inputs["col_scores"].shape[3], core.shape[0], k)
        problem = TopK(*pointers, ACTIVATIONS[row.dtype], *sizes)
        size = self._library.ultramem_cuda_tucker_topk_workspace(ctypes.byref(problem))
        workspace = torch.empty(size + 16, dtype=torch.uint8, device=row.device)
        aligned = P(workspace.data_ptr() + -workspace.data_ptr() % 16)
        self._launch("tucker_topk", problem, aligned, _stream(row))
        return scores, indices

    def _output(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        output = torch.empty(shape, dtype=like.dtype, device=like.device)
        return output.fill_(torch.nan) if self._poison else output

    def _launch(self, name: str, problem: ctypes.Structure, *arguments: object) -> None:
        launch = getattr(self._library, f"ultramem_cuda_{name}")(ctypes.byref(problem), *arguments)
        if launch.code or launch.cuda_error:
            raise RuntimeError(f"{name}: code {launch.code}, CUDA error {launch.cuda_error}")


def _table(inputs: Mapping[str, torch.Tensor], encoding: int) -> Table:
    table = inputs["table"]
    width = table.shape[1] * (2 if encoding == INT4 else 1)
    kernel_type = ENCODED.get(encoding) or ACTIVATIONS[table.dtype]
    scales = inputs["scales"].data_ptr() if encoding else None
    return Table(table.data_ptr(), kernel_type, table.shape[0], width, width, scales)


def _stream(tensor: torch.Tensor) -> ctypes.c_void_p:
    return P(torch.cuda.current_stream().cuda_stream if tensor.is_cuda else None)
