"""The two TensorRTs: one API under two names, and what each of them cannot do. What differs is said here alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ..errors import InputError
from .cuda_driver import Gpu, find_gpu


@dataclass(frozen=True)
class Backend:
    """A TensorRT: its Python module, the packages that bring it, and what it lacks.

    builds_without_gpu: its builder needs no driver. takes_plugins: its parser takes nodes that are plugins.
    portable_engines: its engines run on every GPU that it knows, `capabilities`; otherwise on the kind they were
    built on. lacks: options of `build` that it has no use for, and why.
    """

    name: str
    module: str
    extra: str
    distributions: tuple[str, ...]
    builds_without_gpu: bool
    takes_plugins: bool
    portable_engines: bool
    capabilities: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Any:
        """The module. Raises InputError that says what to install."""
        try:
            module = importlib.import_module(self.module)
        except (ImportError, OSError, RuntimeError):
            raise InputError(
                f"--backend {self.name}: the Python module {self.module} is not installed; "
                f"run: pip install 'ultramem-deploy[{self.extra}]'"
            ) from None
        if not hasattr(module, "Builder"):
            raise InputError(
                f"--backend {self.name}: the module {self.module} is a placeholder without a builder; install "
                "NVIDIA's own package: https://docs.nvidia.com/deeplearning/tensorrt"
            )
        return module

    def requirement(self, version: str) -> str:
        """What pip installs to get this version."""
        return f"{self._installed() or self.distributions[0]}=={version}"

    def cuda(self) -> str | None:
        """The CUDA major version that the installed package is made for; None where its name does not tell."""
        return (self._installed() or "").partition("-cu")[2].partition("-")[0] or None

    def require_gpu(self) -> Gpu:
        """The GPU. Raises InputError where there is none."""
        gpu = find_gpu()
        if gpu is None:
            raise InputError(
                f"--backend {self.name}: no NVIDIA GPU or driver on this machine, which it needs; run this where "
                "`nvidia-smi` lists a GPU" + ("" if self.builds_without_gpu else ", or use --backend tensorrt-rtx")
            )
        return gpu

    def _installed(self) -> str | None:
        for name in self.distributions:
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
            return name
        return None


TENSORRT = Backend(
    name="tensorrt",
    module="tensorrt",
    extra="tensorrt",
    distributions=("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    builds_without_gpu=False,
    takes_plugins=True,
    portable_engines=False,
)
TENSORRT_RTX = Backend(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    extra="tensorrt-rtx",
    distributions=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    builds_without_gpu=True,
    takes_plugins=False,
    portable_engines=True,
    capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    lacks={
        "--timing-cache": "it chooses kernels when an engine is first run, so a build times nothing",
        "--version-compatible": "its package holds no lean runtime to put into the engine",
    },
)
BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (TENSORRT, TENSORRT_RTX)}


def find_backend(name: str) -> Backend:
    """The backend called `name`; raises InputError for another name."""
    if name not in BACKENDS:
        raise InputError(f"--backend: expected one of {', '.join(BACKENDS)}, found {name!r}")
    return BACKENDS[name]
