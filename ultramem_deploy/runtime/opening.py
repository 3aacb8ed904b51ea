"""From a directory and a runtime's name to something that runs."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..spec import MODEL_TYPE, read_json
from .base import Runner
from .engine_manifest import ENGINE_FILE, model_path
from .engine_manifest import SUFFIX as ENGINE

RUNTIMES = ("torch", "ort", "ort-bodies", "tensorrt")


def open_runner(path: Path, runtime: str | None = None, dtype: str | None = None, tables: str | None = None) -> Runner:
    """Load a model; None picks ONNX Runtime for a bundle, PyTorch for a canonical checkpoint, else transformers.

    An engine runs in the TensorRT that built it.

    dtype (PyTorch alone) and tables (PyTorch and ONNX Runtime): as in `model.load`. Raises InputError where the
    directory does not hold what `runtime` runs.
    """
    kind = _kind(path)
    if runtime not in (None, *RUNTIMES):
        raise InputError(f"--runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
    if kind == "engine":
        if runtime not in (None, "tensorrt"):
            raise InputError(f"{path.name}: an engine runs in TensorRT alone; leave --runtime {runtime} out")
        from .tensorrt import open_engine

        return open_engine(path / ENGINE_FILE if path.is_dir() else path)
    if runtime == "tensorrt":
        raise InputError(f"{path.name}: no TensorRT engine: run `ultramem-deploy build` first")
    if runtime in ("ort", "ort-bodies") and kind != "bundle":
        raise InputError(f"{path.name}: no model.onnx for --runtime {runtime}: run `ultramem-deploy export` first")
    if kind == "bundle" and runtime != "torch":
        from .ort import OrtRunner

        return OrtRunner(path, kernels=runtime != "ort-bodies", tables=tables)
    if kind == "source":
        if runtime == "torch":
            raise InputError(f"{path.name}: not a canonical checkpoint: run `ultramem-deploy convert` first")
        from .transformers_runner import TransformersRunner

        return TransformersRunner(path)
    from .torch_runner import TorchRunner

    return TorchRunner(path, dtype=dtype, tables=tables)


def home(path: Path) -> Path:
    """The directory with a model's tokenizer: the model itself; of an engine the one that `build` put beside it."""
    return model_path(path) if path.suffix == ENGINE else path


def _kind(path: Path) -> str:
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if (path.suffix == ENGINE and path.is_file()) or (path / ENGINE_FILE).is_file():
        return "engine"
    if (path / "model.onnx").is_file():
        return "bundle"
    config = path / "config.json"
    if config.is_file() and read_json(config).get("model_type") == MODEL_TYPE:
        return "checkpoint"
    return "source"
