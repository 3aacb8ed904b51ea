"""The stages that make what a runtime loads: ONNX, engines, bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..defaults import DEFAULT_BUDGET
from ..units import parse_bytes
from .arguments import Budget, Progress, as_budget, as_path, check_known


def export(
    src: str | Path,
    out: str | Path,
    *,
    target: str = "ort",
    overwrite: bool = False,
    copy: bool = False,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Canonical checkpoint -> ONNX bundle; see `converters.onnx.export_onnx`."""
    from ..converters.onnx import export_onnx

    return export_onnx(
        Path(src), Path(out), target=target, overwrite=overwrite, copy=copy, memory_budget=as_budget(memory_budget),
        progress=progress,
    )  # fmt: skip


def build(
    src: str | Path,
    out: str | Path,
    *,
    backend: str,
    workspace: Budget | None = None,
    timing_cache: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Canonical checkpoint or bundle -> TensorRT engine `out`, its manifest `out`.json, and OUT.model beside them.

    OUT.model is the portable bundle that the engine is built from and reads its tables from. `options` are the other
    fields of `converters.engine.BuildOptions`: shapes, dtype, mode, tables, aux_streams, weight_streaming,
    hardware_compatible, version_compatible, embed_plugin, trace. Raises CheckFailed where the last `verify` of `src` or
    of OUT.model failed.
    """
    from ..converters.engine import BuildOptions, build_engine, check_request
    from ..converters.onnx import export_onnx
    from ..runtime.engine_manifest import model_path
    from ..verdict import refuse_failed

    engine, model = Path(out), model_path(Path(out))
    check_known(BuildOptions, options)
    asked = BuildOptions(
        backend=backend,
        workspace=None if workspace is None else parse_bytes(workspace, "--workspace"),
        timing_cache=as_path(timing_cache),
        **options,
    )
    check_request(engine, asked)
    refuse_failed(Path(src))
    export_onnx(
        Path(src), model, target="portable", overwrite=overwrite, copy=copy, memory_budget=as_budget(memory_budget),
        progress=progress,
    )  # fmt: skip
    refuse_failed(model)
    return build_engine(model, engine, asked, overwrite=overwrite, progress=progress)


def bundle(
    src: str | Path,
    out: str | Path,
    *,
    runtime: str = "onnxruntime",
    with_plugins: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Exported model (or an engine) -> bundle for programs in C++ and others; see `converters.bundle.make_bundle`."""
    from ..converters.bundle import make_bundle

    return make_bundle(
        Path(src), Path(out), runtime=runtime, with_plugins=with_plugins, overwrite=overwrite, copy=copy,
        progress=progress,
    )  # fmt: skip


def triton_repository(
    src: str | Path,
    out: str | Path,
    *,
    backend: str = "onnxruntime",
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Exported model, or engine -> model repository of Triton Inference Server; see `converters.bundle.make_triton`."""
    from ..converters.bundle import make_triton

    return make_triton(Path(src), Path(out), backend=backend, overwrite=overwrite, copy=copy, progress=progress)


def check_bundle(bundle: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Verify a bundle's hashes, versions and paths; raises CheckFailed with the first thing that is wrong."""
    from ..converters.bundle import check_bundle as check

    return check(Path(bundle), progress=progress)
