"""The operators on CUDA, forward and backward, by Triton kernels over float tables; quantised ones run the references.

Each function is what its operator's file computes on the CPU, with one difference: a launch cannot stop at an address
outside the table, so the device asserts it, and the error comes with the next synchronisation.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


def take(tensor: torch.Tensor, scales: torch.Tensor | None = None) -> bool:
    """Whether these kernels run an operator on `tensor`: it lies on a GPU, unquantised, and Triton is installed."""
    return tensor.is_cuda and scales is None and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
