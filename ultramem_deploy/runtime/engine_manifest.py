"""The sidecar of an engine, OUT.engine.json: what made it and what it needs; enforced before the engine is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..checkpoint import read_provenance, source_record
from ..checkpoint.files import sha256_file
from ..checkpoint.header import strict_json
from ..checkpoint.provenance import pretty_json
from ..errors import InputError
from .cuda_driver import Gpu
from .engine_backends import Backend, find_backend

FORMAT = 2
SUFFIX = ".engine"
ENGINE_FILE = "model.engine"
"""The engine of a bundle for TensorRT; its manifest lies beside it, and the model directory is the bundle itself."""
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class TableBinding:
    """A table of an engine: the tensor, its bytes in a file of the model directory, that file's SHA-256.

    fingerprint: of the table's bytes, as `table_fingerprint` gives it. resource: the plugins load it; otherwise it is
    an input of the engine.
    """

    __pydantic_config__ = _STRICT

    tensor: str
    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: list[int]
    sha256: str
    fingerprint: str
    resource: bool


@dataclass(frozen=True)
class Plugin:
    """The plugins that an engine calls; `embedded` where it carries their library."""

    __pydantic_config__ = _STRICT

    namespace: str
    version: str
    embedded: bool


@dataclass(frozen=True)
class Manifest:
    """Everything that decides whether an engine can run here, and how to call it.

    identity: SHA-256 of source, options, tool and backend version. cuda: major version of the backend's package. gpu:
    what it was built on ({name, capability, cuda}), None where it was built without. engine: {bytes, sha256}. model:
    the directory beside the engine with the tables, the description and the tokenizer. profiles: {name, shapes:
    {input: {min, opt, max}}} in the engine's order. tables: by the name that the graph gives them.
    """

    __pydantic_config__ = _STRICT

    format: int
    tool: str
    identity: str
    backend: str
    backend_version: str
    cuda: str | None
    gpu: dict[str, str] | None
    mode: str
    dtype: str
    options: dict[str, Any]
    plugin: Plugin | None
    engine: dict[str, int | str]
    model: str
    description: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    profiles: list[dict[str, Any]]
    operators: dict[str, int]
    layers: int
    tables: dict[str, TableBinding]

    def to_json(self) -> bytes:
        return pretty_json(asdict(self))


_ADAPTER = TypeAdapter(Manifest)


def manifest_path(engine: Path) -> Path:
    """OUT.engine.json."""
    return engine.with_name(engine.name + ".json")


def model_path(engine: Path) -> Path:
    """OUT.model: where `build` puts what an engine needs beside itself."""
    return engine.with_name(engine.name.removesuffix(SUFFIX) + ".model")


def read_manifest(engine: Path) -> Manifest:
    """The manifest of an engine. Raises InputError where it is missing, damaged or newer than this release."""
    path = manifest_path(engine)
    if not path.is_file():
        raise InputError(f"{engine}: its manifest {path.name} is not beside it; copy it too, or build the engine again")
    document = strict_json(path.read_bytes(), str(path), "an engine's manifest")
    if document.get("format") != FORMAT:
        raise InputError(
            f"{path}: format {document.get('format')!r}, this release reads {FORMAT}; install the release of "
            "ultramem-deploy that built the engine, or build it again"
        )
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']}; build the engine again") from None


def check_machine(engine: Path, manifest: Manifest) -> tuple[Backend, Any, Gpu]:
    """The backend, its module and the GPU that the engine is for; raises InputError that says what to install."""
    backend = find_backend(manifest.backend)
    module = backend.load()
    if module.__version__ != manifest.backend_version and not manifest.options.get("version_compatible"):
        raise InputError(
            f"{engine}: built by {backend.name} {manifest.backend_version}, found {module.__version__}; run: "
            f"pip install '{backend.requirement(manifest.backend_version)}', or build the engine again"
        )
    gpu = backend.require_gpu()
    _check_gpu(engine, manifest, backend, gpu)
    return backend, module, gpu


def _check_gpu(engine: Path, manifest: Manifest, backend: Backend, gpu: Gpu) -> None:
    if backend.portable_engines:
        if gpu.capability not in backend.capabilities:
            raise InputError(
                f"{engine}: {backend.name} runs on compute capabilities {', '.join(backend.capabilities)}; {gpu.name} "
                f"has {gpu.capability}: build with --backend tensorrt on it"
            )
        return
    built_on = manifest.gpu or {}
    if manifest.options.get("hardware_compatible"):
        if int(gpu.capability.split(".")[0]) < 8:
            raise InputError(f"{engine}: needs compute capability 8.0 or newer; {gpu.name} has {gpu.capability}")
    elif gpu.capability != built_on.get("capability"):
        raise InputError(
            f"{engine}: built on {built_on.get('name')} (compute capability {built_on.get('capability')}), found "
            f"{gpu.name} ({gpu.capability}); build it again here, or with --hardware-compatible"
        )


def check_engine(engine: Path, manifest: Manifest) -> None:
    """Raise InputError unless the file is the engine that the manifest describes."""
    if not engine.is_file() or engine.stat().st_size != manifest.engine["bytes"]:
        found = f"{engine.stat().st_size} bytes" if engine.is_file() else "no such file"
        raise InputError(f"{engine}: its manifest says {manifest.engine['bytes']} bytes, found {found}; build it again")
    if sha256_file(engine) != manifest.engine["sha256"]:
        raise InputError(f"{engine}: not the engine that {manifest_path(engine).name} describes; build it again")


def check_model(engine: Path, manifest: Manifest) -> Path:
    """The model directory, after comparing the tables' files with those that the engine was built with.

    Raises InputError where one is missing or another.
    """
    directory = engine.parent / manifest.model
    if read_provenance(directory) is None:
        raise InputError(f"{engine}: {manifest.model}/ with its tables is not beside it; copy it too, or build again")
    # Recorded hashes are trusted only as long as the files are no newer than the record.
    files = source_record(directory).files
    for name, table in manifest.tables.items():
        if files.get(table.file, {}).get("sha256") != table.sha256:
            raise InputError(
                f"{engine}: table {name} in {manifest.model}/{table.file} is not the one it was built with; "
                "copy the directory that `build` made, or build again"
            )
    return directory
