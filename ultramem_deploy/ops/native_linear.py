"""The native kernel for a dense layer and few rows, on PyTorch's CPU tensors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from struct import Struct

import torch
from torch.nn import functional as F

from . import native

LINEAR = Struct("@PPPPiiqqqq")  # UltramemLinear
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ANY = 1 << 62


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x [..., in] times weight [out, in], plus bias [out]: [..., out] in `dtype`, that of `x` where None.

    Few rows on the CPU go to the kernel, which sums in float32 and rounds once, where `dtype` is float32 or that of
    `x`; all else is `F.linear`, whose output is in the dtype of `x` before it is in `dtype`.
    """
    fits = dtype is None or dtype is torch.float32 or dtype is x.dtype
    if fits and usable(x, weight, bias) and x.numel() <= most_rows(x.dtype) * x.shape[-1]:
        return product(x, weight, bias, dtype or x.dtype)
    out = F.linear(x, weight, bias)
    return out if dtype is None else out.to(dtype)


@cache
def most_rows(dtype: torch.dtype) -> int:
    """The rows up to which the kernel is faster than PyTorch's product (benchmarks/linear.py); 0 where it never is.

    PyTorch lays bfloat16 weights out anew at each call, which costs little beside a product of many rows; of types for
    which the processor has no products its own take several times as long as ours; and MKL's of float32 take twice as
    long where the processor is not Intel's. Intel's processors, and AMX, were not measured: their limits are guesses.
    """
    loaded = native.kernels()
    if loaded is None or loaded.isa == "plain":
        return 0
    if dtype is torch.float32:
        return 128 if _is_intel() else ANY
    if dtype is torch.float16:
        return 16 if torch.ops.mkldnn._is_mkldnn_fp16_supported() else ANY
    if torch.cpu._is_amx_tile_supported():
        return 16
    return 128 if loaded.isa == "avx512_bf16" else ANY


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True


def usable(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the kernel takes these tensors: eager, on the CPU, of one type, and no gradient wanted."""
    if torch.compiler.is_compiling() or x.dtype not in TYPES or weight.dtype is not x.dtype:
        return False
    gradients = torch.is_grad_enabled()
    if not (native.is_plain(x, gradients) and native.is_plain(weight, gradients) and weight.is_contiguous()):
        return False
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1] or torch.is_autocast_enabled("cpu"):
        return False
    if bias is not None and not (bias.dtype is x.dtype and native.is_plain(bias, gradients)):
        return False
    if bias is not None and not (bias.shape == weight.shape[:1] and bias.is_contiguous()):
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and native.kernels() is not None


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What the kernel makes of tensors that are `usable`: [..., out] in float32 or the dtype of `x`."""
    columns, depth = weight.shape
    if x.ndim != 2 or x.stride(1) != 1 or x.stride(0) < depth:
        x = x.contiguous()
    output = x.new_empty(*x.shape[:-1], columns, dtype=dtype)
    pointers = x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), output.data_ptr()
    stride = x.stride(0) if x.ndim == 2 else depth
    rows = output.numel() // columns if columns else 0
    problem = LINEAR.pack(*pointers, TYPES[x.dtype], TYPES[dtype], rows, columns, depth, stride)
    native.run("Linear", "linear", problem)
    return output
