"""Building: a portable bundle on disk -> OUT.engine with its manifest beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from ...checkpoint import read_provenance, source_record
from ...checkpoint.files import sha256_file, write_atomic
from ...checkpoint.provenance import fingerprint, tool_version
from ...errors import InputError
from ...ops import DOMAIN, VERSION
from ...runtime.cuda_driver import find_gpu
from ...runtime.engine_backends import Backend
from ...runtime.engine_manifest import (
    FORMAT,
    SUFFIX,
    Manifest,
    Plugin,
    TableBinding,
    check_engine,
    manifest_path,
    read_manifest,
)
from ...runtime.ort_model import check_description, description_fingerprint, read_model
from ...runtime.plugins import tensorrt_library
from ...runtime.tensorrt_plugins import add_tables, load_plugins
from ...spec import ModelSpec
from .builder import Built, EngineBuilder
from .graph import (
    Table,
    count_operators,
    hand_tables_to_plugins,
    inline_operators,
    mark_plugins,
    show_memory,
    take_tables_out,
)
from .options import BuildOptions
from .precision import HALVES, to_half
from .profiles import make_profiles, parse_shapes

Progress = Callable[[int, int, str], None]
STEPS = ("reading the graph", "building the engine", "writing")


@dataclass(frozen=True)
class Prepared:
    """A graph as TensorRT is to parse it, and what was noted on the way there."""

    spec: ModelSpec
    model: onnx.ModelProto
    operators: dict[str, int]
    tables: dict[str, Table]
    handed: set[str]
    plugin: Plugin | None


def build_engine(
    bundle: Path, out: Path, options: BuildOptions, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Build the engine `out` from the portable bundle `bundle`, which must be the directory `model_path(out)`.

    Returns engine_bytes, inputs, outputs, profiles, operators, backend, mode, dtype, layers and up_to_date. Raises
    InputError where the options, the backend or the machine stand in the way, or a foreign file lies at `out`.
    """
    backend = check_request(out, options)
    trt = backend.load()
    spec = ModelSpec.load(bundle)
    library = tensorrt_library() if spec.memory and options.resolved_mode(backend) == "plugin" else None
    identity = _identity(bundle, options, backend.requirement(trt.__version__), library)
    if _is_made(out, identity, overwrite):
        return _result(read_manifest(out), up_to_date=True)
    step = _steps(progress)
    step(0)
    if library:
        load_plugins(trt, library)
        add_tables(library, bundle)
    plugin = Plugin(DOMAIN, str(VERSION), options.embed_plugin) if library else None
    prepared = _prepare(bundle, spec, options, plugin)
    profiles = make_profiles(spec, *parse_shapes(options.shapes, spec.decoder.max_positions))
    step(1)
    embedded = library if options.embed_plugin else None
    built = EngineBuilder(trt, backend, out.name).build(prepared.model, bundle, profiles, options, embedded)
    step(2)
    manifest = _manifest(identity, backend, trt.__version__, options, bundle, prepared, built)
    # The manifest comes first: whatever a kill leaves is recognised as ours and built again.
    write_atomic(manifest_path(out), manifest.to_json())
    write_atomic(out, memoryview(built.engine))
    step(3)
    return _result(manifest, up_to_date=False)


def check_request(out: Path, options: BuildOptions) -> Backend:
    """The backend; raises InputError for all that can be refused before anything is read or written."""
    if out.suffix != SUFFIX:
        raise InputError(f"{out}: an engine's name ends in {SUFFIX}; call it {out.name}{SUFFIX}")
    if out.is_dir():
        raise InputError(f"{out}: is a directory; an engine is one file, with its manifest beside it")
    backend = options.checked()
    backend.load()
    if not backend.builds_without_gpu:
        backend.require_gpu()
    return backend


def _prepare(bundle: Path, spec: ModelSpec, options: BuildOptions, plugin: Plugin | None) -> Prepared:
    model = read_model(bundle)
    check_description(bundle, model, spec)
    operators = count_operators(model)
    if options.trace:
        show_memory(model, spec)
    if options.dtype in HALVES:
        to_half(model, options.dtype)
    tables = take_tables_out(model)
    model = mark_plugins(model) if plugin else inline_operators(model)
    handed = hand_tables_to_plugins(model, tables, bundle) if options.tables == "resource" else set()
    return Prepared(spec, model, operators, tables, handed, plugin)


def _identity(bundle: Path, options: BuildOptions, requirement: str, library: Path | None) -> str:
    """What decides the engine's bytes; the timing cache only saves time."""
    asked = asdict(replace(options, timing_cache=None))
    gpu = find_gpu()
    plugin = sha256_file(library) if library else None
    return fingerprint(
        [source_record(bundle).fingerprint, asked, tool_version(), requirement, gpu and asdict(gpu), plugin]
    )


def _is_made(out: Path, identity: str, overwrite: bool) -> bool:
    """Whether `out` is what this build would make; InputError where it is something else and may not be replaced."""
    if not out.exists() and not manifest_path(out).exists():
        return False
    if not manifest_path(out).is_file():
        raise InputError(f"{out}: exists and was not made by this tool; choose another name, or remove it yourself")
    if read_manifest(out).identity != identity:
        if not overwrite:
            raise InputError(f"{out}: exists, and it was made otherwise; use --overwrite or another name")
        return False
    try:
        check_engine(out, read_manifest(out))
    except InputError:
        return False
    return True


def _manifest(
    identity: str,
    backend: Backend,
    version: str,
    options: BuildOptions,
    bundle: Path,
    prepared: Prepared,
    built: Built,
) -> Manifest:
    gpu, engine = find_gpu(), memoryview(built.engine)
    files = (read_provenance(bundle) or {}).get("files", {})
    return Manifest(
        format=FORMAT,
        tool=tool_version(),
        identity=identity,
        backend=backend.name,
        backend_version=version,
        cuda=backend.cuda(),
        gpu=asdict(gpu) if gpu else None,
        mode="plugin" if prepared.plugin else "portable",
        dtype=options.dtype,
        options=options.recorded(),
        plugin=prepared.plugin,
        engine={"bytes": engine.nbytes, "sha256": hashlib.sha256(engine).hexdigest()},
        model=bundle.name,
        description=description_fingerprint(prepared.spec),
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=built.profiles,
        operators=prepared.operators,
        layers=built.layers,
        tables={
            name: TableBinding(
                tensor=table.tensor,
                file=table.file,
                offset=table.offset,
                nbytes=table.nbytes,
                dtype=table.dtype,
                shape=list(table.shape),
                sha256=files[table.file]["sha256"],
                fingerprint=table.fingerprint(bundle),
                resource=name in prepared.handed,
            )
            for name, table in prepared.tables.items()
        },
    )


def _result(manifest: Manifest, up_to_date: bool) -> dict[str, Any]:
    told = ("inputs", "outputs", "profiles", "operators", "backend", "mode", "dtype", "layers", "backend_version")
    return {
        "engine_bytes": manifest.engine["bytes"],
        **{name: getattr(manifest, name) for name in told},
        "tables": {name: table.nbytes for name, table in manifest.tables.items()},
        "up_to_date": up_to_date,
    }


def _steps(progress: Progress | None) -> Callable[[int], None]:
    def step(done: int) -> None:
        if progress is not None:
            progress(done, len(STEPS), STEPS[min(done, len(STEPS) - 1)])

    return step
