"""The stages `diff` (with --out: base and changed model in, delta out) and `patch` (base and delta in, model out)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.carry import carry
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.checkpoint.header import itemsize, shown
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.defaults import DEFAULT_BUDGET
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.spec import ModelSpec, read_json

from .compare import Change, Progress, compare_checkpoints, comparisons_within, tensor_sha256

DESCRIPTION = "delta.json"
FORMAT = 1


def diff_checkpoints(
    base: Path,
    changed: Path,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    memory_budget: int | None = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What changed from canonical checkpoint `base` to `changed`; with `out` also written as a delta for `patch`.

    Returns identical, config_changed and tensors: {name: {kind, rows, total_rows}}, and the delta's bytes. The numbers
    of the changed rows, 8 bytes each, are held beside `memory_budget`. Raises InputError, also for too small a budget.
    """
    specs = [ModelSpec.load(path) for path in (base, changed)]
    one, two = Checkpoint.open(base), Checkpoint.open(changed)
    changes = compare_checkpoints(one, two, comparisons_within(one, memory_budget), progress)
    summary: dict[str, Any] = {
        "identical": not changes and specs[0] == specs[1],
        "config_changed": specs[0] != specs[1],
        "tensors": {c.name: _described(c) for c in changes},
    }
    if out is not None:
        summary |= _write_delta(base, changed, out, changes, two, overwrite, memory_budget)
    return summary


def _described(change: Change) -> dict[str, Any]:
    rows = change.total_rows if change.rows is None else len(change.rows)
    return {"kind": change.kind, "rows": rows, "total_rows": change.total_rows}


def _write_delta(
    base: Path,
    changed: Path,
    out: Path,
    changes: list[Change],
    source: Checkpoint,
    overwrite: bool,
    memory_budget: int | None,
) -> dict[str, Any]:
    tasks = [task for change in changes for task in _delta_tasks(change, source)]
    entries = {c.name: _described(c) | {"base_sha256": c.base_sha256} for c in changes}
    records = [source_record(path, edited=True) for path in (base, changed)]
    with Stage(out, "diff", records, {}, overwrite=overwrite, memory_budget=memory_budget) as stage:
        if not stage.up_to_date:
            if tasks:
                stage.write_tensors("delta", tasks)
            config = ModelSpec.load(changed).to_config()
            stage.write_json(DESCRIPTION, {"format": FORMAT, "config": config, "tensors": entries})
            stage.receipt = {"tensors": len(changes)}
    return {"delta_bytes": sum(task.nbytes for task in tasks)} | stage.notes


def _delta_tasks(change: Change, source: Checkpoint) -> list[TensorTask]:
    if change.kind == "removed":
        return []
    if change.rows is None:
        return [TensorTask.copy(source, change.name)]
    info, rows = source.info(change.name), change.rows

    def picked(start: int, stop: int) -> np.ndarray[Any, Any]:
        return source.gather(change.name, rows[start:stop]) if info.shape else source.read_rows(change.name, 0, 1)

    shape = (len(rows), *info.shape[1:])
    return [
        TensorTask.of(f"{change.name}:rows", rows),
        TensorTask(f"{change.name}:values", info.dtype, shape, picked),
    ]


def patch_checkpoint(
    base: Path,
    delta: Path,
    out: Path,
    *,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: int | None = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Apply a delta to the checkpoint it was made from: `out` equals the changed checkpoint, tensor for tensor.

    Shards that hold no changed tensor are linked. Raises InputError where `delta` is none, belongs to another base, or
    the budget has no room for a chunk.
    """
    description = read_delta(delta)
    source = Checkpoint.open(base)
    entries: dict[str, dict[str, Any]] = description["tensors"]
    spec = ModelSpec.from_config(description["config"], f"{delta.name}/{DESCRIPTION}")
    _check_base(base, source, entries)
    kept = {name: entry for name, entry in entries.items() if entry["kind"] != "removed"}
    values = Checkpoint.open(delta) if kept else source
    tasks = [_patched(name, entry, source, values) for name, entry in kept.items()]
    _check_complete(spec, delta, {n: i.shape for n, i in source.tensors.items() if n not in entries}, tasks)
    chunks_in_flight(tasks, 1, memory_budget)
    with Stage(
        out,
        "patch",
        [source_record(base), source_record(delta)],
        {},
        overwrite=overwrite,
        copy=copy,
        jobs=jobs,
        memory_budget=memory_budget,
        progress=progress,
    ) as stage:
        if not stage.up_to_date:
            carry(stage, source, [name for name in source.tensors if name not in entries])
            if tasks:
                stage.write_tensors("patched", tasks)
            stage.write_json("config.json", spec.to_config())
            for file in companion_files(base):
                stage.link_file(file)
            stage.receipt = {"tensors": len(entries), "rows": sum(e["rows"] for e in entries.values())}
    return stage.receipt | {"up_to_date": stage.up_to_date} | stage.notes


def read_delta(delta: Path) -> dict[str, Any]:
    """`delta.json`: format, config and tensors {name: {kind, rows, …}}. Raises InputError for what is no delta."""
    description = read_json(delta / DESCRIPTION)
    parts = [description.get(part) for part in ("tensors", "config")]
    if description.get("format") != FORMAT or not all(isinstance(part, dict) for part in parts):
        raise InputError(
            f"{delta}: not a delta of format {FORMAT}: make one with `ultramem-deploy diff A B --out DELTA`"
        )
    for name, entry in description["tensors"].items():
        if not isinstance(entry, dict) or entry.get("kind") not in ("rows", "replaced", "added", "removed"):
            raise InputError(f"{delta}/{DESCRIPTION}: tensor {shown(name)}: not an entry that this version knows")
        if not isinstance(entry.get("rows"), int):
            raise InputError(
                f"{delta}/{DESCRIPTION}: tensor {shown(name)}: rows: expected a number, found {entry.get('rows')!r}"
            )
    return description


def _check_base(base: Path, source: Checkpoint, entries: dict[str, dict[str, Any]]) -> None:
    for name, entry in entries.items():
        expected = entry.get("base_sha256")
        found = tensor_sha256(source, name) if name in source.tensors else None
        if found != expected:
            raise InputError(
                f"{base}: tensor {shown(name)} is not the one that the delta was made from: patch its own base"
            )


def _check_complete(
    spec: ModelSpec, delta: Path, kept: Mapping[str, tuple[int, ...]], tasks: Sequence[TensorTask]
) -> None:
    """InputError where what is kept and what is patched are not the tensors of the model that the delta describes."""
    found = {**kept, **{task.name: task.shape for task in tasks}}
    for name, tensor in tensor_layout(spec).items():
        if found.get(name) != tensor.shape:
            held = "none" if name not in found else f"shape {list(found[name])}"
            raise InputError(
                f"{delta}/{DESCRIPTION}: its config asks for tensor {name} of shape {list(tensor.shape)}, the patched "
                f"model would hold {held}: the delta is damaged; make it again with `ultramem-deploy diff`"
            )


def _patched(name: str, entry: dict[str, Any], source: Checkpoint, delta: Checkpoint) -> TensorTask:
    if entry["kind"] != "rows":
        return TensorTask.copy(delta, name)
    info = source.info(name)
    rows, values = np.asarray(delta.array(f"{name}:rows")), delta.info(f"{name}:values")
    limit = info.shape[0] if info.shape else 1
    numbers = rows.ndim == 1 and rows.dtype == np.int64
    ordered = numbers and bool((rows[1:] > rows[:-1]).all()) and (not len(rows) or 0 <= rows[0] <= rows[-1] < limit)
    if not ordered or values.shape != (len(rows), *info.shape[1:]) or values.dtype != info.dtype:
        raise InputError(
            f"{delta.path}: tensor {shown(name)}: rows and values do not fit the base's {list(info.shape)}"
        )

    def merged(start: int, stop: int) -> np.ndarray[Any, Any]:
        out = source.read_rows(name, start, stop)
        first, last = np.searchsorted(rows, (start, stop))
        out[rows[first:last] - start] = delta.read_rows(f"{name}:values", int(first), int(last))
        return out

    # At most every row of a chunk is another.
    return TensorTask(
        name, info.dtype, info.shape, merged, chunk_elements(info.shape, info.dtype) * itemsize(info.dtype)
    )
