"""A TensorRT engine as a model repository of Triton Inference Server, for its tensorrt backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...checkpoint import Stage, source_record
from ...checkpoint.files import link_or_copy, sha256_file
from ...errors import InputError
from ...runtime.engine_manifest import Manifest
from ...runtime.plugins import TENSORRT_LIBRARY, tensorrt_library
from .engine import opened
from .triton_config import CONFIG, NAME, VERSION_FOLDER, Port, configuration

PLAN = "model.plan"
BACKEND = "tensorrt"

Progress = Callable[[int, int, str], None]


def engine_repository(
    engine: Path, out: Path, *, overwrite: bool = False, copy: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the model repository `out` for NAME.engine and the tables that its plugins load; returns the receipt.

    Raises InputError for what `build` did not make, an engine for tensorrt-rtx, which no backend of the server runs,
    and one whose tables are inputs: a request would have to bring them.
    """
    held, directory = opened(engine)
    _check(engine, held)
    library = tensorrt_library() if held.plugin and not held.plugin.embedded else None
    options = {"backend": BACKEND, "engine": held.engine["sha256"], "plugin": sha256_file(library) if library else None}
    record = source_record(directory)
    with Stage(out, "triton", record, options, overwrite=overwrite, copy=copy, progress=progress) as stage:
        if not stage.up_to_date:
            _write(stage, engine, directory, held, library)
            stage.receipt |= {"backend": BACKEND, "model": NAME, "max_batch_size": _max_batch(held)}
    return stage.receipt | {"up_to_date": stage.up_to_date} | stage.notes


def _check(engine: Path, held: Manifest) -> None:
    if held.backend != BACKEND:
        raise InputError(
            f"{engine}: an engine for {held.backend}, the server's backend runs those of tensorrt: build it again with "
            "--backend tensorrt, on a GPU like the server's"
        )
    inputs = [name for name, table in held.tables.items() if not table.resource]
    if inputs:
        raise InputError(
            f"{engine}: table {inputs[0]} is an input of the engine, which every request would have to bring: build it "
            "again with --tables resource"
        )


def _write(stage: Stage, engine: Path, directory: Path, held: Manifest, library: Path | None) -> None:
    folder = f"{NAME}/{VERSION_FOLDER}"
    for name in sorted({table.file for table in held.tables.values()}):
        stage.link_file(directory / name, f"{folder}/{name}")
    stage.link_file(engine, f"{folder}/{PLAN}")
    if library:
        link_or_copy(library, stage.workdir / folder / TENSORRT_LIBRARY, copy=True)
    stage.write_text(CONFIG, engine_config(held))


def engine_config(held: Manifest) -> str:
    """config.pbtxt: one instance on a GPU, which takes each request by the profile that fits it."""
    profiles = ", ".join(f'"{number}"' for number in range(len(held.profiles)))
    return configuration(
        BACKEND,
        map(_port, held.inputs),
        map(_port, held.outputs),
        max_batch=_max_batch(held),
        device=f"KIND_GPU profile: [ {profiles} ]",
        more=[f'default_model_filename: "{PLAN}"'],
    )


def _port(port: dict[str, Any]) -> Port:
    return Port(port["name"], port["dtype"], port["shape"][1:])


def _max_batch(held: Manifest) -> int:
    return min(int(profile["shapes"]["input_ids"]["max"][0]) for profile in held.profiles)
