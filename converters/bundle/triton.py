"""An exported model as a model repository of Triton Inference Server, for its onnxruntime or its Python backend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ...checkpoint import Stage, source_record
from ...checkpoint.files import sha256_file
from ...errors import InputError
from ...runtime.ort_model import MODEL_FILE, check_description, uses_memory
from ...runtime.plugins import ORT_LIBRARY, ort_library
from ...spec import ModelSpec
from .stage import exported, weight_files

NAME = "ultramem"
BACKENDS = ("onnxruntime", "python")
VERSION_FOLDER = "1"
MAX_BATCH = 8
# How long a request may wait for others of its shape.
QUEUE_MICROSECONDS = 500
_PYTHON_MODEL = Path(__file__).with_name("triton_model.py")
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
}

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

    `backend` "python" adds a model.py that runs the graph where the server lacks the onnxruntime backend. The caches
    are inputs and outputs, so that requests stay independent of one another and are batched as they come.
    Raises InputError for a directory that `export` did not make, or an unknown backend.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    src, out = Path(src), Path(out)
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
        shutil.copyfile(library, stage.workdir / folder / ORT_LIBRARY)
    if backend == "python":
        stage.write_text(f"{folder}/model.py", _PYTHON_MODEL.read_text(encoding="utf-8"))
    named = library is not None and backend == "onnxruntime"
    stage.write_text(f"{NAME}/config.pbtxt", model_config(model, plugin=named, backend=backend))


def model_config(model: onnx.ModelProto, *, plugin: bool, backend: str = "onnxruntime") -> str:
    """config.pbtxt of a graph whose inputs and outputs all have the batch as their first axis."""
    parts = [f'name: "{NAME}"', f'backend: "{backend}"', f"max_batch_size: {MAX_BATCH}"]
    parts += [_port("input", value) for value in model.graph.input]
    parts += [_port("output", value) for value in model.graph.output]
    parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    parts.append("instance_group [ { kind: KIND_CPU } ]")
    if plugin:
        # The server hands the name to the loader as it is: its folder must be on LD_LIBRARY_PATH.
        parts.append(f'model_operations {{ op_library_filename: "{ORT_LIBRARY}" }}')
    return "\n".join(parts) + "\n"


def _port(kind: str, value: onnx.ValueInfoProto) -> str:
    tensor: Any = value.type.tensor_type
    if tensor.elem_type not in _TYPES:
        raise InputError(f"{value.name}: element type {tensor.elem_type} has no place in a Triton configuration")
    # Triton counts the batch by itself.
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim][1:]
    dims = ", ".join(map(str, sizes))
    return f'{kind} {{ name: "{value.name}" data_type: {_TYPES[tensor.elem_type]} dims: [ {dims} ] }}'
