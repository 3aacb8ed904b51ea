"""manifest.json as `bundle` writes it (`runtime.manifest` reads it)."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...checkpoint import Checkpoint, TensorInfo, read_header
from ...checkpoint.companions import GENERATION_CONFIG
from ...checkpoint.provenance import tool_version
from ...layout import tensor_layout
from ...ops import DOMAIN, VERSION
from ...planning import prefill_chunk
from ...runtime.manifest import FORMAT, SCHEMA
from ...runtime.plugins import library_info
from ...spec import ModelSpec

MIN_ONNXRUNTIME = "1.20"  # as the package's own extra `cpu` requires; a test compares them
MIN_PLUGIN = "0.1.0"  # the first release whose library holds version 1 of every operator
_BLOCK = 4 << 20

Advance = Callable[[int, str], None]


def table_entries(spec: ModelSpec, checkpoint: Checkpoint, advance: Advance) -> list[dict[str, Any]]:
    """One entry a table: file, offset and bytes, dtype, shape, SHA-256 of those bytes, rows that a token reads."""
    layout = tensor_layout(spec)
    names = [name for name in checkpoint.tensors if name in layout and layout[name].role == "table"]
    return [_table(checkpoint.tensors[name], _rows_read(spec, name), advance) for name in sorted(names)]


def _table(info: TensorInfo, rows: int, advance: Advance) -> dict[str, Any]:
    return {
        "name": info.name,
        "file": info.file.name,
        "offset": info.offset,
        "bytes": info.nbytes,
        "dtype": info.dtype,
        "shape": list(info.shape),
        "sha256": range_hash(info.file, info.offset, info.nbytes, advance),
        "rows_per_token": rows,
    }


def _rows_read(spec: ModelSpec, name: str) -> int:
    table = name.split(".")[1]
    return sum(layer.taken for layer in spec.memory if layer.table == table)


def range_hash(file: Path, offset: int, size: int, advance: Advance = lambda count, what: None) -> str:
    """SHA-256 of `size` bytes at `offset` of a file, as hex; what lies past the end is left out."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        stream.seek(offset)
        while size and (block := stream.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
            advance(len(block), file.name)
    return digest.hexdigest()


def plugin_entry(folder: Path, name: str) -> dict[str, Any]:
    """The plugin library `name` of the bundle: its platform and the release that it says it is."""
    return {
        "file": name,
        "host": "onnxruntime",
        "platform": f"{platform.system()}-{platform.machine()}".lower(),
        "version": library_info(folder / name)["version"],
    }


def manifest(
    spec: ModelSpec,
    *,
    runtime: str,
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
        "requires": {
            "onnxruntime": MIN_ONNXRUNTIME,
            "plugin": MIN_PLUGIN,
            "operators": {"domain": DOMAIN, "version": VERSION},
        },
        "graph": {**graph, "prefill_chunk": prefill_chunk(spec), "uses_operators": bool(spec.memory)},
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


def tables_match(folder: Path, entries: list[dict[str, Any]]) -> str | None:
    """What is wrong with the first table whose safetensors header says otherwise; None where all agree."""
    for entry in entries:
        found = read_header(folder / entry["file"])[0].get(entry["name"])
        if found is None:
            return f"{entry['file']}: holds no tensor {entry['name']}"
        for key, value in (("offset", found.offset), ("dtype", found.dtype), ("shape", list(found.shape))):
            if entry[key] != value:
                return f"{entry['file']}: {entry['name']} has {key} {value}, the manifest says {entry[key]}"
    return None
