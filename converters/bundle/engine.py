"""The bundle stage for TensorRT: an engine, the tables that it reads, and beside them all that running it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoint import Stage, read_header, source_record
from ...checkpoint.files import link_or_copy, sha256_file
from ...errors import InputError
from ...ops import DOMAIN, VERSION
from ...runtime.bundle_files import table_fingerprint
from ...runtime.engine_backends import find_backend
from ...runtime.engine_manifest import (
    ENGINE_FILE,
    SUFFIX,
    Manifest,
    check_engine,
    check_model,
    manifest_path,
    read_manifest,
)
from ...runtime.manifest import MANIFEST
from ...runtime.plugins import TENSORRT_LIBRARY, library_version, tensorrt_library
from ...spec import ModelSpec
from .describe import counted, file_entries, link_companions, receipt
from .manifest import MIN_PLUGIN, manifest, plugin_entry, stored_table

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Progress = Callable[[int, int, str], None]


def bundle_engine(
    engine: Path,
    out: Path,
    *,
    with_plugins: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Bundle NAME.engine, with NAME.engine.json and NAME.model/ beside it, into `out`; returns the stage's receipt.

    with_plugins: put this platform's plugin library inside where the engine calls it. Raises InputError as `opened`.
    """
    held, directory = opened(engine)
    library = tensorrt_library() if with_plugins and held.plugin and not held.plugin.embedded else None
    options = {"engine": held.engine["sha256"], "plugin": sha256_file(library) if library else None}
    record = source_record(directory)
    with Stage(out, "bundle", record, options, overwrite=overwrite, copy=copy, progress=progress) as stage:
        if not stage.up_to_date:
            _link(stage, engine, directory, held)
            if library:
                link_or_copy(library, stage.workdir / TENSORRT_LIBRARY, copy=True)
            document = _describe(stage, directory, held, {n: str(e["sha256"]) for n, e in record.files.items()})
            stage.receipt |= receipt(document, stage)
    return stage.receipt | {"up_to_date": stage.up_to_date} | stage.notes


def opened(engine: Path) -> tuple[Manifest, Path]:
    """An engine's manifest and its model directory.

    Raises InputError for what `build` did not make, or what is no longer what it made.
    """
    if engine.suffix != SUFFIX or not engine.is_file():
        raise InputError(
            f"{engine}: no TensorRT engine: first run `ultramem-deploy build {engine} NAME.engine --backend "
            "tensorrt-rtx` (or tensorrt), then bundle NAME.engine"
        )
    held = read_manifest(engine)
    check_engine(engine, held)
    return held, check_model(engine, held)


def _link(stage: Stage, engine: Path, directory: Path, held: Manifest) -> None:
    """The files with tables alone: every other weight lies in the engine."""
    for name in sorted({table.file for table in held.tables.values()}):
        stage.link_file(directory / name)
    stage.link_file(engine, ENGINE_FILE)
    stage.write_text(manifest_path(Path(ENGINE_FILE)).name, replace(held, model=".").to_json().decode())
    stage.link_file(directory / "config.json")
    link_companions(stage, directory)


def _describe(stage: Stage, directory: Path, held: Manifest, hashes: dict[str, str]) -> dict[str, Any]:
    spec = ModelSpec.load(directory)
    plugin = TENSORRT_LIBRARY if (stage.workdir / TENSORRT_LIBRARY).is_file() else None
    tables = _tables(spec, stage, directory, held)
    called = _called(held)
    document = manifest(
        spec,
        runtime="tensorrt",
        requires={
            held.backend: held.backend_version,
            "plugin": MIN_PLUGIN,
            "operators": {"domain": DOMAIN, "version": VERSION},
        },
        graph={
            "file": ENGINE_FILE,
            "target": held.mode,
            "cache": "appended",
            "positions": called["context"],
            "prefill_chunk": called["longest"],
            "uses_operators": held.plugin is not None,
        },
        tables=tables,
        plugins=[_plugin(stage.workdir / plugin)] if plugin else [],
        files=file_entries(stage, hashes),
    )
    document["engine"] = called
    stage.write_json(MANIFEST, document)
    return document


def _plugin(library: Path) -> dict[str, Any]:
    return plugin_entry(library.name, "tensorrt", library_version(library))


def _tables(spec: ModelSpec, stage: Stage, directory: Path, held: Manifest) -> list[dict[str, Any]]:
    """The tensors as they are stored, each once: two inputs may be views of one."""
    advance = counted(stage, sum(table.nbytes for table in held.tables.values()))
    entries = {}
    for table in held.tables.values():
        info = read_header(directory / table.file)[0][table.tensor]
        entry = stored_table(info, spec, advance)
        entries[table.tensor] = entry | {"fingerprint": table_fingerprint(info.file, info.offset, info.nbytes)}
    return [entries[name] for name in sorted(entries)]


def _called(held: Manifest) -> dict[str, Any]:
    """What a program has to know to load the engine and to call it."""
    prefill, decode = (profile["shapes"] for profile in held.profiles)
    backend = find_backend(held.backend)
    anywhere = backend.portable_engines or held.options.get("hardware_compatible")
    here = [held.gpu["capability"]] if held.gpu and not anywhere else []
    types = {port["name"]: port["dtype"] for port in held.inputs}
    caches = {port["name"]: port["shape"] for port in held.inputs if port["name"].startswith("past_key_values.")}
    return {
        "backend": held.backend,
        "version": held.backend_version,
        "version_compatible": bool(held.options.get("version_compatible")),
        "embeds_plugin": bool(held.plugin and held.plugin.embedded),
        "weight_streaming": bool(held.options.get("weight_streaming")),
        "capabilities": list(backend.capabilities) if backend.portable_engines else here,
        "least_capability": "8.0" if anywhere and not backend.portable_engines else None,
        "shortest": prefill["input_ids"]["min"][1],
        "longest": prefill["input_ids"]["max"][1],
        "context": decode["attention_mask"]["max"][1],
        "cache_item_bytes": ITEM_BYTES[types[next(iter(caches))]],
        "caches": [
            {"input": name, "output": name.replace("past_key_values", "present"), "heads": shape[1], "width": shape[3]}
            for name, shape in caches.items()
        ],
        "bindings": {name: table.tensor for name, table in held.tables.items() if not table.resource},
    }
