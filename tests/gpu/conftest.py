"""Everything here needs an NVIDIA GPU, a torch that sees it, and `make plugins`; elsewhere it is skipped."""

from __future__ import annotations

import pytest
import torch

from tools.check_tensorrt import built
from tools.cuda_library import CudaLibrary


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "/tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(scope="session")
def cuda() -> CudaLibrary:
    """The kernels; on a machine with a GPU a missing library is a failure."""
    path = built.cuda_library()
    assert path is not None, "libultramem_cuda.so is not built: `make plugins`"
    return CudaLibrary(path)
