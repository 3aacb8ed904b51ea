"""An exported model as a model repository of Triton Inference Server, for one of the backends that run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ...checkpoint import Stage, source_record
from ...checkpoint.files import link_or_copy, sha256_file
from ...errors import InputError
from ...runtime.engine_manifest import SUFFIX
from ...runtime.ort_model import MODEL_FILE, check_description, uses_memory
from ...runtime.plugins import ORT_LIBRARY, ort_library
from ...spec import ModelSpec
from . import triton_engine
from .stage import exported, weight_files
from .triton_config import CONFIG, NAME, VERSION_FOLDER, Port, configuration

BACKENDS = ("onnxruntime", "python", triton_engine.BACKEND)
MAX_BATCH = 8
_PYTHON_MODEL = Path(__file__).with_name("triton_model.py")

Progress = Callable[[int, int, str], None]


def make_triton(
    src: Path,
    out: Path,
    *,
    backend: str = "onnxruntime",
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the model repository `out` for the exported model `src`; returns the stage's receipt.

    `backend` "python" adds a model.py that runs the graph where the server lacks the onnxruntime backend; of "tensorrt"
    `src` is an engine. The caches are inputs and outputs, so that requests stay independent of one another and are
    batched as they come. Raises InputError for what `export` or `build` did not make, or an unknown backend.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    src, out = Path(src), Path(out)
    if backend == triton_engine.BACKEND:
        return triton_engine.engine_repository(src, out, overwrite=overwrite, copy=copy, progress=progress)
    if src.suffix == SUFFIX and src.is_file():
        raise InputError(f"{src}: an engine, which the {backend} backend does not run: add --triton-backend tensorrt")
    model = exported(src)
    check_description(src, model, ModelSpec.load(src))
    library = ort_library() if uses_memory(model) else None
    options = {"plugin": sha256_file(library) if library else None, "name": NAME}
    if backend != "onnxruntime":
        options["backend"] = sha256_file(_PYTHON_MODEL)
    with Stage(out, "triton", source_record(src), options, overwrite=overwrite, copy=copy, progress=progress) as stage:
        if not stage.up_to_date:
            _write(stage, src, model, library, backend)
            stage.receipt |= {"backend": backend, "model": NAME, "max_batch_size": MAX_BATCH}
    return stage.receipt | {"up_to_date": stage.up_to_date} | stage.notes


def _write(stage: Stage, src: Path, model: onnx.ModelProto, library: Path | None, backend: str) -> None:
    folder = f"{NAME}/{VERSION_FOLDER}"
    for name in sorted({MODEL_FILE, *weight_files(model)}):
        stage.link_file(src / name, f"{folder}/{name}")
    if library:
        link_or_copy(library, stage.workdir / folder / ORT_LIBRARY, copy=True)
    if backend == "python":
        stage.write_text(f"{folder}/model.py", _PYTHON_MODEL.read_text(encoding="utf-8"))
    named = library is not None and backend == "onnxruntime"
    stage.write_text(CONFIG, model_config(model, plugin=named, backend=backend))


def model_config(model: onnx.ModelProto, *, plugin: bool, backend: str = "onnxruntime") -> str:
    """config.pbtxt of a graph whose inputs and outputs all have the batch as their first axis."""
    # The server hands the name to the loader as it is: its folder must be on LD_LIBRARY_PATH.
    library = [f'model_operations {{ op_library_filename: "{ORT_LIBRARY}" }}'] if plugin else []
    inputs, outputs = map(_port, model.graph.input), map(_port, model.graph.output)
    return configuration(backend, inputs, outputs, max_batch=MAX_BATCH, device="KIND_CPU", more=library)


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor: Any = value.type.tensor_type
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return Port(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, sizes[1:])
