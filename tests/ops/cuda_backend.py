"""The CUDA kernels as a backend, on a GPU's tensors or, compiled for the host, on the CPU's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tools.cuda_library import CudaLibrary

from .backends import Backend, Outputs
from .cases import Case


def backend(library: CudaLibrary, device: str, lanes: int = 0) -> Backend:
    """Runs a case on `device`; `lanes` is SparseLookup's tactic."""

    def run(case: Case) -> Outputs:
        inputs = {name: tensor.contiguous().to(device) for name, tensor in case.inputs.items()}
        return [_numpy(output) for output in _run(library, case, inputs, lanes)]

    return run


def _run(library: CudaLibrary, case: Case, inputs: Mapping[str, torch.Tensor], lanes: int) -> tuple[torch.Tensor, ...]:
    if case.operator.name == "SparseLookup":
        return (library.sparse_lookup(inputs, **case.attributes, lanes=lanes),)
    if case.operator.name == "SparseGate":
        return (library.sparse_gate(inputs, **case.attributes),)
    return library.tucker_topk(inputs, **case.attributes)


def _numpy(output: torch.Tensor) -> np.ndarray:
    output = output.cpu()
    return output.float().numpy() if output.dtype == torch.bfloat16 else output.numpy()
