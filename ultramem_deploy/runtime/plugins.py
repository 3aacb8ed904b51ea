"""Where the native libraries of this package are, and what they say about themselves."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata
from pathlib import Path

from ..errors import InputError

DISTRIBUTION = "ultramem-deploy"
ORT_LIBRARY = "libultramem_ort.so"
ORT_VARIABLE = "ULTRAMEM_ORT_LIBRARY"
TENSORRT_LIBRARY = "libultramem_tensorrt.so"
TENSORRT_VARIABLE = "ULTRAMEM_TENSORRT_LIBRARY"
CHECKOUT = Path(__file__).resolve().parents[2]


def ort_library() -> Path:
    """The library that ONNX Runtime registers (`SessionOptions.register_custom_ops_library`).

    Looks at $ULTRAMEM_ORT_LIBRARY, then the installed package, then the checkout's build folder. Raises InputError with
    the command that builds it where it is in none of them.
    """
    return _library(ORT_LIBRARY, ORT_VARIABLE, "`pip install .` builds it, or `make plugins` in a checkout")


def tensorrt_library() -> Path:
    """The library of TensorRT plugins (`IPluginRegistry.load_library`); looked for and refused as `ort_library`."""
    how = "`make plugins` in a checkout builds it where nvcc is installed"
    return _library(TENSORRT_LIBRARY, TENSORRT_VARIABLE, how)


def _library(name: str, variable: str, how: str) -> Path:
    named = os.environ.get(variable)
    if named:
        if not Path(named).is_file():
            raise InputError(f"{variable} names {named}, which is not a file: correct it or unset it")
        return Path(named)
    found = _installed(name) or _built(name)
    if found is None:
        raise InputError(f"{name} is not built: {how}")
    return found


def library_info(path: Path) -> dict[str, str]:
    """What a library says of itself: `version` of the package it was built from, `isa` that its kernels run on here.

    Raises InputError where the file is not a library of ours, and where $ULTRAMEM_CPU asks for what this machine lacks.
    """
    try:
        library = ctypes.CDLL(str(path.resolve()))
        info = {key: _text(library, function) for key, function in _QUESTIONS.items()}
    except (OSError, AttributeError) as error:
        raise InputError(f"{path} is not an UltraMem library: {error}; rebuild it with `pip install .`") from error
    problem = info.pop("error")
    if problem:
        raise InputError(problem)
    return info


def library_version(path: Path) -> str:
    """The release that a library without kernels for the CPU was built from. Raises InputError as `library_info`."""
    try:
        return _text(ctypes.CDLL(str(path.resolve())), _QUESTIONS["version"])
    except (OSError, AttributeError) as error:
        raise InputError(f"{path} is not an UltraMem library: {error}; rebuild it with `make plugins`") from error


_QUESTIONS = {"version": "ultramem_version", "isa": "ultramem_cpu_isa", "error": "ultramem_cpu_error"}


def _text(library: ctypes.CDLL, name: str) -> str:
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    return (function() or b"").decode()


def _installed(name: str) -> Path | None:
    """The library beside the installed package; an editable install keeps it in site-packages all the same."""
    try:
        path = Path(str(metadata.distribution(DISTRIBUTION).locate_file(f"ultramem_deploy/lib/{name}")))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _built(name: str) -> Path | None:
    """The newest build of the checkout that this file is part of."""
    builds = [p for p in (CHECKOUT / "build").glob(f"**/{name}") if p.is_file()]
    return max(builds, key=lambda p: p.stat().st_mtime, default=None)
