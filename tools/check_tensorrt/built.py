"""What the build left behind: libraries, the harness, ptxas's reports."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / "build" / "native"
NOT_BUILT = "libultramem_tensorrt.so is not built: `make plugins` builds it where nvcc 12.8 or newer is found"


def library(build: Path = BUILD) -> Path | None:
    """The plugin library in a build folder, or None."""
    return _file(build / "plugins" / "tensorrt" / "libultramem_tensorrt.so")


def cuda_library(build: Path = BUILD) -> Path | None:
    """The kernels' C API on a GPU, or None."""
    return _file(build / "plugins" / "kernels" / "cuda" / "libultramem_cuda.so")


def ort_cuda_library(build: Path = BUILD) -> Path | None:
    """The kernels for ONNX Runtime's CUDA provider, or None."""
    return _file(build / "plugins" / "onnxruntime" / "libultramem_ort_cuda.so")


def plugins_on_host(build: Path = BUILD) -> Path | None:
    """The plugins over kernels compiled for the host, or None."""
    return _file(build / "plugins" / "tensorrt" / "libtensorrt_plugins_on_host.so")


def harness(build: Path = BUILD) -> Path | None:
    """The program that drives the plugins without TensorRT, or None."""
    return _file(build / "plugins" / "tensorrt" / "ultramem_tensorrt_harness")


def ptxas_reports(build: Path = BUILD) -> list[Path]:
    """One file an object of device code."""
    return sorted((build / "plugins" / "kernels" / "cuda").glob("**/*.ptxas"))


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None
