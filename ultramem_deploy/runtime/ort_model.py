"""Opening a bundle with ONNX Runtime: checks first, then one session, errors told in a line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ..errors import InputError
from ..ops import DOMAIN, VERSION
from ..spec import DecoderSpec, ModelSpec
from ..tables import wanted

MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class Opened:
    """A session and what the exporter noted about the graph.

    packed: the cache is read and written in place, in buffers with room to spare (GroupQueryAttention); otherwise
    each step returns the whole cache. positions: how many tokens a row may have, 0 for no limit. kv_heads, head_dim
    (of keys) and value_dim: the cache's fixed sizes.
    """

    session: Any
    packed: bool
    positions: int
    outputs: tuple[str, ...]
    kv_heads: int
    head_dim: int
    value_dim: int


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises InputError that names what to install."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError("onnxruntime is not installed; run: pip install 'ultramem-deploy[cpu]'") from None
    return onnxruntime


def read_model(bundle: Path) -> onnx.ModelProto:
    """`model.onnx` without its weights. Raises InputError for what is no bundle, or one that lacks a file."""
    path = bundle / MODEL_FILE
    if not path.is_file():
        raise InputError(f"{bundle}: not a bundle: it holds no {MODEL_FILE}; `ultramem-deploy export` makes one")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise InputError(f"{path}: not an ONNX model ({_first_line(error)}); export it again") from None
    _check_opset(path, model)
    _check_files(bundle, model)
    return model


def description_fingerprint(spec: ModelSpec) -> str:
    """SHA-256 of a model description; the exporter notes it in the graph as `description`.

    Fields at their defaults do not count: a later version's new fields leave it as it was.
    """
    return hashlib.sha256(json.dumps(_said(spec), sort_keys=True).encode()).hexdigest()


def _said(value: Any) -> Any:
    """A description without the fields that hold their defaults."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _said(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not _is_default(field, getattr(value, field.name))
        }
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items()}
    return [_said(item) for item in value] if isinstance(value, tuple) else value


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    return field.default_factory is not dataclasses.MISSING and bool(value == field.default_factory())


def check_description(bundle: Path, model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Raise InputError unless `spec`, from the bundle's config.json, is what the graph was made from."""
    noted = {prop.key: prop.value for prop in model.metadata_props}.get("description")
    if noted != description_fingerprint(spec):
        raise InputError(f"{bundle}: config.json does not describe {MODEL_FILE}; export the model again")


def uses_memory(model: onnx.ModelProto) -> bool:
    return any(node.domain == DOMAIN for node in model.graph.node)


def _utf8(path: Path) -> str:
    """The path as ONNX Runtime takes it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{path}: ONNX Runtime opens no path that is not UTF-8; rename the directory") from None
    return str(path)


def open_model(
    bundle: Path,
    model: onnx.ModelProto,
    decoder: DecoderSpec,
    *,
    kernels: bool = True,
    threads: int | None = None,
    tables: str | None = None,
    extra: tuple[str, ...] = (),
) -> Opened:
    """A session on `model`, with the values `extra` added to its outputs; `tables` as in `ultramem_deploy.tables`.

    Raises InputError where it cannot load.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _utf8(bundle.resolve()))
    if kernels and uses_memory(model):
        options.add_session_config_entry("ultramem.tables", wanted(tables))
        _register(options)
    shown: Any = deepcopy(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
    try:
        session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(
            f"{bundle / MODEL_FILE}: ONNX Runtime {ort.__version__} cannot load it ({_first_line(error)}); "
            "export it again, or install the onnxruntime that `ultramem-deploy doctor` names"
        ) from None
    noted = {prop.key: prop.value for prop in model.metadata_props}
    return Opened(
        session,
        packed=noted.get("cache") == "packed",
        positions=int(noted.get("positions", "0")),
        outputs=tuple(output.name for output in session.get_outputs()),
        kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        value_dim=decoder.value_dim,
    )


def _register(options: Any) -> None:
    from .plugins import library_info, ort_library

    library = ort_library()
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        library_info(library)  # where the library itself can tell what is wrong, ULTRAMEM_CPU say, this raises
        raise InputError(
            f"{library}: ONNX Runtime cannot load it ({_first_line(error)}); rebuild it: `pip install .`, or "
            "`make plugins` in a checkout"
        ) from None


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    versions = {opset.domain: opset.version for opset in model.opset_import}
    found = versions.get(DOMAIN, VERSION)
    if found != VERSION:
        raise InputError(
            f"{path}: operators of {DOMAIN} version {found}, this release runs version {VERSION}; "
            "export it again, or install the release that made it"
        )


def _check_files(bundle: Path, model: onnx.ModelProto) -> None:
    needed: dict[str, int] = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if "location" in entry:
            end = int(entry.get("offset", "0")) + int(entry.get("length", "0"))
            needed[entry["location"]] = max(needed.get(entry["location"], 0), end)
    for name, size in sorted(needed.items()):
        file = bundle / name
        if not file.is_file():
            raise InputError(f"{bundle}: {name} is missing, model.onnx needs its weights; copy the whole bundle")
        if file.stat().st_size < size:
            raise InputError(f"{file}: {file.stat().st_size} bytes, model.onnx reads {size}; copy the file again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
