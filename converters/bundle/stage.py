"""The bundle stage: an export's files linked, and beside them all that another program needs to run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ...checkpoint import Checkpoint, Stage, source_record
from ...checkpoint.files import link_or_copy, sha256_file
from ...errors import InputError
from ...ops import DOMAIN, VERSION
from ...planning import prefill_chunk
from ...runtime.manifest import MANIFEST, RUNTIMES
from ...runtime.ort_model import MODEL_FILE, check_description, read_model
from ...runtime.plugins import ORT_LIBRARY, library_info, ort_library
from ...spec import MODEL_TYPE, ModelSpec, read_json
from .describe import counted, file_entries, link_companions, receipt
from .engine import bundle_engine
from .genai import CONFIG, genai_config
from .manifest import MIN_ONNXRUNTIME, MIN_PLUGIN, manifest, plugin_entry, table_entries

Progress = Callable[[int, int, str], None]


def make_bundle(
    src: Path,
    out: Path,
    *,
    runtime: str = "onnxruntime",
    with_plugins: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Bundle the exported model `src`, or for runtime "tensorrt" the engine, into `out`; returns the stage's receipt.

    with_plugins: put this platform's operator library inside, for programs that have none of their own. `copy` copies
    the weights instead of linking them. Raises InputError for a directory that `export` did not make.
    """
    src, out = Path(src), Path(out)
    if runtime not in RUNTIMES:
        raise InputError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
    if runtime == "tensorrt":
        return bundle_engine(src, out, with_plugins=with_plugins, overwrite=overwrite, copy=copy, progress=progress)
    model = exported(src)
    spec = ModelSpec.load(src)
    check_description(src, model, spec)
    library = ort_library() if with_plugins else None
    options = {"plugin": sha256_file(library) if library else None}
    record = source_record(src)
    with Stage(out, "bundle", record, options, overwrite=overwrite, copy=copy, progress=progress) as stage:
        if not stage.up_to_date:
            _link(stage, src, model)
            if library:
                link_or_copy(library, stage.workdir / ORT_LIBRARY, copy=True)
            hashes = {name: str(entry["sha256"]) for name, entry in record.files.items()}
            document = _describe(stage, spec, model, Checkpoint.open(src), hashes)
            stage.receipt |= receipt(document, stage)
    return stage.receipt | {"up_to_date": stage.up_to_date} | stage.notes


def exported(src: Path) -> onnx.ModelProto:
    """The graph of an exported model. Raises InputError, with the command to run, for what is none."""
    config = src / "config.json"
    if not (src / MODEL_FILE).is_file() and config.is_file() and read_json(config).get("model_type") == MODEL_TYPE:
        raise InputError(
            f"{src}: a checkpoint, not an export: it holds no {MODEL_FILE}; first run "
            f"`ultramem-deploy export {src} {src}-onnx`, then bundle {src}-onnx"
        )
    return read_model(src)


def _link(stage: Stage, src: Path, model: onnx.ModelProto) -> None:
    """Every file that the graph, a checkpoint reader or a tokenizer opens."""
    checkpoint = Checkpoint.open(src)
    for file in checkpoint.files:
        stage.link_shard(file, [info for info in checkpoint.tensors.values() if info.file == file])
    known = {file.name for file in checkpoint.files}
    for name in sorted(weight_files(model) - known):
        stage.link_file(src / name)
    for name in (MODEL_FILE, "config.json"):
        stage.link_file(src / name)
    link_companions(stage, src)


def weight_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that the graph's weights lie in."""
    return {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}


def _describe(
    stage: Stage, spec: ModelSpec, model: onnx.ModelProto, checkpoint: Checkpoint, hashes: dict[str, str]
) -> dict[str, Any]:
    """Write genai_config.json and manifest.json, the last file: it holds the hashes of all others."""
    folder = stage.workdir
    plugin = ORT_LIBRARY if (folder / ORT_LIBRARY).is_file() else None
    noted = {prop.key: prop.value for prop in model.metadata_props}
    stage.write_json(CONFIG, genai_config(spec, packed=noted["cache"] == "packed", plugin=plugin))
    graph = {
        "file": MODEL_FILE,
        "target": noted["target"],
        "cache": noted["cache"],
        "positions": int(noted["positions"]) or spec.decoder.max_positions,
    }
    advance = counted(stage, sum(info.nbytes for name, info in checkpoint.tensors.items() if name[:7] == "tables."))
    document = manifest(
        spec,
        runtime="onnxruntime",
        requires={
            "onnxruntime": MIN_ONNXRUNTIME,
            "plugin": MIN_PLUGIN,
            "operators": {"domain": DOMAIN, "version": VERSION},
        },
        graph=graph | {"prefill_chunk": prefill_chunk(spec), "uses_operators": bool(spec.memory)},
        tables=table_entries(spec, checkpoint, advance),
        plugins=[plugin_entry(plugin, "onnxruntime", library_info(folder / plugin)["version"])] if plugin else [],
        files=file_entries(stage, hashes),
    )
    stage.write_json(MANIFEST, document)
    return document
