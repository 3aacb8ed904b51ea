"""Makes the canonical checkpoint: whole shards are linked where nothing changes, everything else is streamed."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Stage, TensorInfo, TensorTask, identified
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.cast import cast, cast_scratch
from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.checkpoint.occupied import check_outside
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.defaults import DEFAULT_BUDGET
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout

from .base import ImportPlan, SourceTensor, open_source
from .registry import plan_source

DTYPES = ("keep", "float32", "bfloat16", "float16")
_FLOATS = ("float32", "bfloat16", "float16", "float64")

Progress = Callable[[int, int, str], None]


def import_checkpoint(
    src: Path,
    out: Path,
    *,
    family: str | None = None,
    dtype: str = "keep",
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: int | None = DEFAULT_BUDGET,
    executor: str = "local",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Convert the model at `src` (directory or .gguf file) to a canonical checkpoint directory `out`.

    `dtype` "keep" leaves every tensor as it is stored (GGUF: float32); else floats are rounded once. `copy` copies
    shards that would be hard-linked. Returns family, tensors, memory_layers, bytes, linked and copied (whole shards),
    dtype, warnings and up_to_date. Raises InputError, ConfigError among them, before anything is written where the
    source does not fit.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    source = open_source(Path(src))
    check_outside(Path(out), source.path)
    plan = plan_source(source, family)
    layout = tensor_layout(plan.spec)
    targets = {name: layout[name].dtype or target_dtype(name, tensor, dtype) for name, tensor in plan.tensors.items()}
    warnings = plan.warnings + _dtype_warnings(set(targets.values()))
    linkable = _whole_shards(plan, targets)
    summary = {
        "tensors": len(plan.tensors),
        "memory_layers": len(plan.spec.memory),
        "dtype": dtype,
        "warnings": warnings,
    }
    record = identified(source.gguf or source.path, source.weight_files)
    options = {"family": plan.family, "dtype": dtype}
    chunks_in_flight([_task(n, t, targets[n]) for n, t in plan.tensors.items()], 1, memory_budget)
    with Stage(
        out,
        "convert",
        record,
        options,
        overwrite=overwrite,
        copy=copy,
        jobs=jobs,
        memory_budget=memory_budget,
        executor=executor,
        progress=progress,
    ) as stage:
        if not stage.up_to_date:
            _write(stage, plan, targets, linkable)
            stage.receipt = summary | _taken_over(stage)
    nbytes = sum(TensorTask(n, targets[n], t.shape, t.rows).nbytes for n, t in plan.tensors.items())
    told = {"family": plan.family, "bytes": nbytes, "up_to_date": stage.up_to_date}
    return told | {"linked": 0, "copied": 0} | stage.receipt | summary | stage.notes


def _taken_over(stage: Stage) -> dict[str, int]:
    """How many whole weight files were linked, and how many had to be copied, or were asked to be."""
    how = [how for name, how in stage.linked.items() if name.endswith(".safetensors")]
    return {"linked": len(how) - how.count("copy"), "copied": how.count("copy")}


def target_dtype(name: str, tensor: SourceTensor, dtype: str) -> str:
    """The dtype that a tensor gets; integers (shuffles, quantised tables) always keep theirs."""
    if dtype == "keep" and tensor.dtype == "float64":
        raise InputError(f"tensor {shown(name)}: holds float64, which no model is run in; choose dtype float32")
    return dtype if dtype != "keep" and tensor.dtype in _FLOATS else tensor.dtype


def _dtype_warnings(dtypes: set[str]) -> list[str]:
    floats = sorted(dtypes & set(_FLOATS))
    if len(floats) < 2:
        return []
    return [f"the source mixes {' and '.join(floats)}; choose a dtype when the model is loaded, or convert to one"]


def _whole_shards(plan: ImportPlan, targets: dict[str, str]) -> dict[Path, list[TensorInfo]]:
    """Source files of which every wanted tensor keeps its name and dtype, with those tensors."""
    wanted: dict[Path, list[TensorInfo]] = defaultdict(list)
    changed: set[Path] = set()
    for name, tensor in plan.tensors.items():
        info = tensor.stored
        if info is None:
            continue
        wanted[info.file].append(info)
        if info.name != name or info.dtype != targets[name]:
            changed.add(info.file)
    return {file: infos for file, infos in wanted.items() if file not in changed}


def _write(stage: Stage, plan: ImportPlan, targets: dict[str, str], linkable: dict[Path, list[TensorInfo]]) -> None:
    groups: dict[str, list[TensorTask]] = defaultdict(list)
    for name, tensor in plan.tensors.items():
        if tensor.stored is None or tensor.stored.file not in linkable:
            groups[_group(name)].append(_task(name, tensor, targets[name]))
    stage.require_room(groups, "choose a narrower --dtype", linkable)
    stage.write_json("config.json", plan.spec.to_config())
    for file, infos in sorted(linkable.items()):
        stage.link_shard(file, infos)
    for group, tasks in groups.items():
        stage.write_tensors(group, tasks)
    for file in plan.companions:
        stage.link_file(file)
    if plan.write_companions is not None:
        with tempfile.TemporaryDirectory() as made:
            plan.write_companions(Path(made))
            for file in sorted(Path(made).iterdir()):
                stage.link_file(file)


def _group(name: str) -> str:
    return {"tables": "tables", "memory": "memory"}.get(name.split(".")[0], "decoder")


def _task(name: str, tensor: SourceTensor, dtype: str) -> TensorTask:
    where = f"tensor {shown(tensor.name)}"

    def rows(start: int, stop: int) -> np.ndarray[Any, Any]:
        return cast(where, tensor.rows(start, stop), dtype)

    scratch = cast_scratch(chunk_elements(tensor.shape, dtype), tensor.dtype, dtype)
    return TensorTask(name, dtype, tensor.shape, rows, scratch)
