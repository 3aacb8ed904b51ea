"""The native kernel for attention of one position over a cache, on PyTorch's CPU tensors."""

from __future__ import annotations

from struct import Struct

import torch

from . import native

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
HEADS = "Pqqq"  # UltramemHeads: data, strides of sequence, head and place
ATTENTION = Struct(f"@{HEADS}{HEADS}{HEADS}PqPi4xqqqqqqf4x")  # UltramemAttention


def usable(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether the kernel takes these tensors: eager, on the CPU, of one type, and no gradient wanted."""
    gradients = torch.is_grad_enabled()
    if torch.compiler.is_compiling() or q.dtype not in TYPES:
        return False
    for x in (q, k, v):
        if x.dtype is not q.dtype or not native.is_plain(x, gradients):
            return False
    if mask is not None and not (mask.dtype is torch.bool and native.is_plain(mask, gradients)):
        return False
    return _fit(q, k, v, mask) and torch._C._len_torch_dispatch_stack() == 0 and native.kernels() is not None


def _fit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> bool:
    batch, heads, positions, width = q.shape
    _, kv_heads, places, _ = k.shape
    if positions != 1 or k.shape[0] != batch or k.shape[3] != width or v.shape[:3] != k.shape[:3]:
        return False
    return heads % kv_heads == 0 and (mask is None or mask.shape in ((batch, 1, 1, places), (1, 1, 1, places)))


def one_position(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Queries [B, heads, 1, width] over keys and values [B, kv_heads, P, ...]: [B, heads, value width].

    mask: bool [B or 1, 1, 1, P], True where a place may be seen. scale: of scores, width^-1/2 where None. Scores, their
    softmax and the sums of values are in float32. A sequence without a place gives NaN.
    """
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    if mask is not None and mask.stride(3) != 1:
        mask = mask.contiguous()
    batch, heads, _, width = q.shape
    _, kv_heads, places, value_width = v.shape
    output = q.new_empty(batch, heads, value_width)
    pointers = (item for x in (q, k, v) for item in (x.data_ptr(), *x.stride()[:3]))
    seen = (0, 0) if mask is None else (mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0)
    sizes = batch, heads, kv_heads, places, width, value_width
    factor = width**-0.5 if scale is None else scale
    native.run(
        "attention", "attention", ATTENTION.pack(*pointers, *seen, output.data_ptr(), TYPES[q.dtype], *sizes, factor)
    )
    return output
