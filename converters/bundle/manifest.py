"""manifest.json as `bundle` writes it (`runtime.manifest` reads it)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...checkpoint import Checkpoint, TensorInfo
from ...checkpoint.companions import GENERATION_CONFIG
from ...checkpoint.provenance import tool_version
from ...layout import tensor_layout
from ...runtime.bundle_files import range_hash
from ...runtime.manifest import FORMAT, SCHEMA, this_platform
from ...spec import ModelSpec

MIN_ONNXRUNTIME = "1.20"  # as the package's own extra `cpu` requires; a test compares them
MIN_PLUGIN = "0.1.0"  # the first release whose library holds version 1 of every operator

Advance = Callable[[int, str], None]


def table_entries(spec: ModelSpec, checkpoint: Checkpoint, advance: Advance) -> list[dict[str, Any]]:
    """One entry a table: file, offset and bytes, dtype, shape, SHA-256 of those bytes, rows that a token reads."""
    layout = tensor_layout(spec)
    names = [name for name in checkpoint.tensors if name in layout and layout[name].role == "table"]
    return [stored_table(checkpoint.tensors[name], spec, advance) for name in sorted(names)]


def stored_table(info: TensorInfo, spec: ModelSpec, advance: Advance) -> dict[str, Any]:
    """The entry of one tensor: a value table, its scales, or the shuffle of a memory layer."""
    return {
        "name": info.name,
        "file": info.file.name,
        "offset": info.offset,
        "bytes": info.nbytes,
        "dtype": info.dtype,
        "shape": list(info.shape),
        "sha256": range_hash(info.file, info.offset, info.nbytes, advance),
        "rows_per_token": _rows_read(spec, info.name),
    }


def _rows_read(spec: ModelSpec, name: str) -> int:
    if name.startswith("memory."):
        return spec.memory[int(name.split(".")[1])].taken
    table = name.split(".")[1]
    return sum(layer.taken for layer in spec.memory if layer.table == table)


def plugin_entry(name: str, host: str, version: str) -> dict[str, Any]:
    """The plugin library `name` of the bundle: what loads it, its platform, and the release that it says it is."""
    return {"file": name, "host": host, "platform": this_platform(), "version": version}


def manifest(
    spec: ModelSpec,
    *,
    runtime: str,
    requires: Mapping[str, Any],
    graph: Mapping[str, Any],
    tables: list[dict[str, Any]],
    plugins: list[dict[str, Any]],
    files: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """The whole document; `files` are all of the bundle's, name -> size and sha256."""
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "tool": {"name": "ultramem-deploy", "version": tool_version()},
        "runtime": runtime,
        "requires": dict(requires),
        "graph": dict(graph),
        "model": spec.to_config(),
        "tables": tables,
        "tokenizer": _tokenizer(files),
        "plugins": plugins,
        "files": dict(files),
    }


def _tokenizer(files: Mapping[str, Any]) -> dict[str, str]:
    roles = {
        "file": "tokenizer.json",
        "config": "tokenizer_config.json",
        "chat_template": "chat_template.jinja",
        "generation": GENERATION_CONFIG,
    }
    return {role: name for role, name in roles.items() if name in files}
