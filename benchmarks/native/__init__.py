"""The benchmarks' own C++: compiled when it is first wanted, run on PyTorch's threads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import byref, c_size_t, c_void_p
from pathlib import Path

import torch

from ultramem_deploy.ops import native
from ultramem_deploy.runtime.plugins import ort_library


class Tasks:
    """The tasks `void NAME(void* problem, size_t index)` of one source file beside this one.

    Exits with a message where there is no C++ compiler.
    """

    def __init__(self, source: str, flags: Sequence[str] = ()) -> None:
        self._threads = native.OpenMp(ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p), torch.get_num_threads())
        self._run = ctypes.CDLL(str(ort_library())).ultramem_openmp_for
        self._run.argtypes = (c_void_p, c_void_p, c_size_t, c_void_p)
        self._library = _compiled(source, flags)

    def run(self, name: str, problem: ctypes.Structure, count: int) -> None:
        """Tasks 0 to `count` - 1 of `problem`, each by whichever thread is free."""
        task = ctypes.cast(getattr(self._library, name), c_void_p)
        self._run(ctypes.addressof(self._threads), task, count, ctypes.cast(byref(problem), c_void_p))


def compiler() -> str | None:
    """Of C++, on the path."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _compiled(source: str, flags: Sequence[str]) -> ctypes.CDLL:
    found = compiler()
    if found is None:
        raise SystemExit(f"error: a C++ compiler (c++) is needed for benchmarks/native/{source}")
    path = Path(__file__).parent / source
    with tempfile.TemporaryDirectory(prefix="ultramem-native-") as folder:
        out = Path(folder) / f"{path.stem}.so"
        subprocess.run([found, "-O3", "-std=c++17", "-shared", "-fPIC", *flags, "-o", out, path], check=True)
        return ctypes.CDLL(str(out))  # once it is mapped, the process no longer needs the name
