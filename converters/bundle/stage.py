"""The bundle stage: an export's files linked, and beside them all that another program needs to run them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ...checkpoint import Checkpoint, Stage, source_record
from ...checkpoint.companions import companion_files
from ...checkpoint.files import files_below, sha256_file
from ...checkpoint.partial import STATE_NAMES
from ...errors import InputError
from ...runtime.manifest import MANIFEST, RUNTIMES
from ...runtime.ort_model import MODEL_FILE, check_description, read_model
from ...runtime.plugins import ORT_LIBRARY, ort_library
from ...spec import MODEL_TYPE, ModelSpec, read_json
from .genai import CONFIG, genai_config, tokenizer_config
from .manifest import manifest, plugin_entry, table_entries

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

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
    """Bundle the exported model `src` into `out`; returns the stage's receipt.

    with_plugins: put this platform's operator library inside, for programs that have none of their own. `copy` copies
    the weights instead of linking them. Raises InputError for a directory that `export` did not make.
    """
    src, out = Path(src), Path(out)
    if runtime == "tensorrt":
        raise InputError(
            "runtime tensorrt: an engine travels as NAME.engine, NAME.engine.json and NAME.model/, which "
            "`ultramem-deploy build MODEL NAME.engine` writes; bundle for onnxruntime"
        )
    if runtime not in RUNTIMES:
        raise InputError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
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
                shutil.copyfile(library, stage.workdir / ORT_LIBRARY)
            hashes = {name: str(entry["sha256"]) for name, entry in record.files.items()}
            document = _describe(stage, spec, model, Checkpoint.open(src), hashes)
            stage.receipt |= _receipt(document, stage)
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
    companions = {file.name: file for file in companion_files(src)}
    given = companions.pop(TOKENIZER_CONFIG, None)
    if given or TOKENIZER in companions:
        stage.write_json(TOKENIZER_CONFIG, tokenizer_config(read_json(given) if given else {}))
    for file in companions.values():
        stage.link_file(file)


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
    advance = _counted(stage, sum(info.nbytes for name, info in checkpoint.tensors.items() if name[:7] == "tables."))
    document = manifest(
        spec,
        runtime="onnxruntime",
        graph=graph,
        tables=table_entries(spec, checkpoint, advance),
        plugins=[plugin_entry(folder, plugin)] if plugin else [],
        files=_file_entries(stage, hashes),
    )
    stage.write_json(MANIFEST, document)
    return document


def _counted(stage: Stage, total: int) -> Callable[[int, str], None]:
    done = 0

    def advance(count: int, what: str) -> None:
        nonlocal done
        done += count
        if stage.progress is not None:
            stage.progress(done, total, what)

    return advance


def _file_entries(stage: Stage, hashes: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file; those linked have the hashes that their source's record gives."""
    entries = {}
    for name in files_below(stage.workdir):
        if name not in STATE_NAMES:
            file = stage.workdir / name
            known = hashes.get(name) if name in stage.linked else None
            entries[name] = {"size": file.stat().st_size, "sha256": known or sha256_file(file)}
    return entries


def _receipt(document: dict[str, Any], stage: Stage) -> dict[str, Any]:
    return {
        "runtime": document["runtime"],
        "schema": document["schema"],
        "requires": document["requires"],
        "plugins": document["plugins"],
        "tables": len(document["tables"]),
        "table_bytes": sum(table["bytes"] for table in document["tables"]),
        "tokenizer": bool(document["tokenizer"]),
        "weights": {name: stage.linked[name] for name in sorted(stage.linked) if name.endswith(".safetensors")},
    }
