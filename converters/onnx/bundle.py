"""The export stage: a directory with model.onnx beside hard links of the checkpoint's safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx

from ...checkpoint import Checkpoint, Stage, TensorInfo, TensorTask, read_header, read_provenance, source_record
from ...checkpoint.budget import chunks_in_flight
from ...checkpoint.chunks import Threads
from ...checkpoint.companions import companion_files
from ...checkpoint.files import require_space, write_atomic
from ...checkpoint.shard_file import write_shard
from ...defaults import DEFAULT_BUDGET
from ...errors import InputError
from ...model.loading import check_tensors
from ...spec import ModelSpec
from .model import TARGETS, build_model
from .weights import EXPORT_FILE, derived_tensors


def export_onnx(
    src: Path,
    out: Path,
    *,
    target: str = "ort",
    overwrite: bool = False,
    copy: bool = False,
    memory_budget: int | None = DEFAULT_BUDGET,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Export the canonical checkpoint `src` to the bundle `out`; returns the stage's receipt.

    target: "ort" for ONNX Runtime, "portable" for any runtime. Every weight stays in the linked safetensors files;
    `copy` copies them instead of linking; `memory_budget` bounds the bytes of derived tensors in memory.
    Raises InputError or ConfigError for what `src` lacks.
    """
    if target not in TARGETS:
        raise InputError(f"target: expected one of {', '.join(TARGETS)}, found {target!r}")
    src, out = Path(src), Path(out)
    spec = ModelSpec.load(src)
    checkpoint = Checkpoint.open(src)
    check_tensors(spec, checkpoint)
    derived = derived_tensors(spec, checkpoint, target)
    in_flight = chunks_in_flight(derived, 1, memory_budget)
    options = {"target": target}
    with Stage(out, "export", source_record(src), options, overwrite=overwrite, copy=copy, progress=progress) as stage:
        if stage.up_to_date:
            stage.receipt |= (read_provenance(out) or {}).get("receipt", {})
        else:
            tensors = _link_weights(stage, checkpoint)
            tensors |= _write_derived(stage, derived, in_flight)
            model = build_model(spec, tensors, target)
            check_model(model)
            write_atomic(stage.workdir / "model.onnx", serialized(model))
            _write_description(stage, spec, src)
            stage.receipt |= _receipt(model, target, stage)
    return stage.receipt | {"up_to_date": stage.up_to_date} | stage.notes


def serialized(model: Any) -> bytes:
    """The bytes of a proto, the same for the same graph."""
    return bytes(model.SerializeToString(deterministic=True))


def check_model(model: onnx.ModelProto) -> None:
    """ONNX's own checker, with type and shape inference where no foreign domain stands in the way.

    Weights become inputs for it: the checker wants external files beside the working directory, and no links.
    """
    foreign = {opset.domain for opset in model.opset_import} - {"", "ai.onnx", "ai.ultramem"}
    bare = deepcopy(model)
    outside = [tensor for tensor in bare.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        bare.graph.initializer.remove(tensor)
    onnx.checker.check_model(bare, full_check=not foreign)


def _link_weights(stage: Stage, checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Link every shard; the tensors as they lie in the bundle."""
    linked: dict[str, TensorInfo] = {}
    for file in checkpoint.files:
        infos = [info for info in checkpoint.tensors.values() if info.file == file]
        held = read_header(stage.workdir / stage.link_shard(file, infos))[0]
        linked |= {info.name: held[info.name] for info in infos}
    return linked


def _write_derived(stage: Stage, derived: list[TensorTask], in_flight: int) -> dict[str, TensorInfo]:
    """Not listed in the index: they are no part of the model, so the bundle still opens as a checkpoint."""
    if not derived:
        return {}
    path = stage.workdir / EXPORT_FILE
    require_space(stage.workdir, sum(task.nbytes for task in derived), EXPORT_FILE)
    write_shard(path, derived, Threads(1, in_flight))
    return dict(read_header(path)[0])


def _write_description(stage: Stage, spec: ModelSpec, src: Path) -> None:
    stage.write_json("config.json", spec.to_config())
    for file in companion_files(src):
        stage.link_file(file)


def _receipt(model: onnx.ModelProto, target: str, stage: Stage) -> dict[str, Any]:
    own = [stage.workdir / name for name in ("model.onnx", EXPORT_FILE)]
    return {
        "target": target,
        "nodes": len(model.graph.node),
        "weights": {name: stage.linked[name] for name in sorted(stage.linked) if name.endswith(".safetensors")},
        "bytes_written": sum(file.stat().st_size for file in own if file.exists()),
    }
