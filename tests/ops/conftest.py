"""The library under test, once for each instruction set of this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.plugins import library_info, ort_library

from . import backends

LEVELS = ("plain", "avx2", "avx512")
"""Of the operators; AVX-512 with BF16 has kernels of its own for dense layers alone."""
EVERY_LEVEL = (*LEVELS, "avx512_bf16")


@pytest.fixture(scope="session")
def library() -> Path:
    """The built library; a missing one fails with the command that builds it."""
    return ort_library()


@pytest.fixture(scope="session")
def libraries(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy of the library for each instruction set: a copy is a library of its own, which decides for itself."""
    folder = tmp_path_factory.mktemp("isa")
    found = {}
    for level in EVERY_LEVEL:
        copy = Path(shutil.copy(library, folder / f"lib_{level}.so"))
        before = os.environ.get("ULTRAMEM_CPU")
        os.environ["ULTRAMEM_CPU"] = level
        try:
            assert library_info(copy)["isa"] == level
            found[level] = copy
        except InputError as error:
            assert "this machine lacks" in str(error)
        finally:
            os.environ.pop("ULTRAMEM_CPU")
            if before is not None:
                os.environ["ULTRAMEM_CPU"] = before
    assert "plain" in found
    return found


@pytest.fixture(scope="session")
def runners(libraries: dict[str, Path]) -> dict[str, backends.Backend]:
    """Every way to run an operator, by name."""
    kernels = {f"kernel {level}": backends.runtime(path) for level, path in libraries.items() if level in LEVELS}
    return {
        "torch": backends.torch_operator,
        "torch native": backends.torch_native,
        "onnx reference": backends.onnx_reference,
        "body": backends.runtime(None),
        **kernels,
    }
