"""`fold --order frequency`: rows that are read often lie together, so that they share pages; nothing else changes.

The rows of a table are sorted by how often its readers took them, the hottest first. A reader's shuffle leads to the
new places; a reader without one gets one, int32: 4 bytes a virtual slot and one more read a retrieved value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy import profiling
from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.carry import carry, staged
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.defaults import DEFAULT_BUDGET
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import table_layout, tensor_layout
from ultramem_deploy.model.loading import check_tensors
from ultramem_deploy.option_problems import refuse
from ultramem_deploy.planning.scratch import gather_scratch
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec

from .options import fold_problems
from .slots import Slots

COVERED = 0.9
PAGES = {"4KiB": 4 << 10, "2MiB": 2 << 20}
_LARGEST_INT32 = (1 << 31) - 1

Progress = Callable[[int, int, str], None]


def order_checkpoint(
    src: Path,
    out: Path,
    *,
    order: str = "frequency",
    profile: Path | None = None,
    text: Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: int | None = DEFAULT_BUDGET,
    executor: str = "local",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out`: the tables of `src` sorted by the accesses in `profile`, or counted now on `text`.

    Returns the receipt: every layer run before and after, and of each table the pages that 90% of the accesses touch.
    Raises InputError for a profile of another model, and where no table can be sorted.
    """
    refuse(fold_problems(order=order, profile=profile, text=text))
    spec, source = ModelSpec.load(src), Checkpoint.open(src)
    check_tensors(spec, source)
    _check_readers(spec)
    counts = profiling.load(profile, spec) if profile else profiling.profile(src, text, progress=progress)[1]
    job = OrderJob.of(spec, source, counts)
    groups = job.groups()
    chunks_in_flight([task for tasks in groups.values() for task in tasks], 1, memory_budget, job.held_bytes)
    digest = hashlib.sha256(b"".join(seen.tobytes() for seen in counts)).hexdigest()
    with Stage(
        out,
        "fold",
        source_record(src),
        {"order": order, "accesses": digest},
        overwrite=overwrite,
        copy=copy,
        jobs=jobs,
        memory_budget=memory_budget,
        executor=executor,
        held_bytes=job.held_bytes,
        progress=progress,
    ) as stage:
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True}
        stage.require_room(groups)
        job.write(stage, groups)
        for file in companion_files(src):
            stage.link_file(file)
        stage.receipt = job.receipt(stage)
    return stage.receipt | {"up_to_date": False} | stage.notes


def _check_readers(spec: ModelSpec) -> None:
    """InputError unless every reader of a table sees all of it: a window of a table cannot be sorted by itself."""
    if not spec.memory:
        raise InputError("fold: --order: the model has no memory layers; upcycle it or convert one that has them")
    for index, layer in enumerate(spec.memory):
        rows = spec.tables[layer.table].rows
        if layer.slots != rows:
            raise InputError(
                f"fold: --order: memory layer {index} reads a window of {layer.slots} of the {rows} rows of table "
                f"{layer.table!r}, which sorting would tear apart; fold --mode expand gives each layer its own table"
            )


@dataclass(frozen=True)
class OrderJob:
    """A checkpoint and the new order of its tables: `order[table][new place]` is the row that moves there."""

    spec: ModelSpec
    after: ModelSpec
    source: Checkpoint
    accesses: dict[str, np.ndarray]
    order: dict[str, np.ndarray]
    place: dict[str, np.ndarray]

    @classmethod
    def of(cls, spec: ModelSpec, source: Checkpoint, counts: list[np.ndarray]) -> OrderJob:
        accesses = {name: np.zeros(table.rows, np.int64) for name, table in spec.tables.items()}
        for index, seen in enumerate(counts):
            slots = Slots.of(spec, index, source)
            rows = slots.block_and_row(0, len(seen))[1]
            accesses[slots.layer.table] += np.bincount(rows, seen, slots.table.rows).astype(np.int64)
        order = {name: np.argsort(-seen, kind="stable") for name, seen in accesses.items()}
        place = {name: np.argsort(rows) for name, rows in order.items()}
        memory = tuple(_moved(layer, place[layer.table]) for layer in spec.memory)
        return cls(spec, replace(spec, memory=memory), source, accesses, order, place)

    @property
    def held_bytes(self) -> int:
        """Bytes of the accesses and of both directions of the order."""
        return sum(array.nbytes for held in (self.accesses, self.order, self.place) for array in held.values())

    def groups(self) -> dict[str, list[TensorTask]]:
        """The sorted tables, the shuffles that lead to their rows, and what else lay beside the latter."""
        tables = [task for name in self.spec.tables for task in self._table_tasks(name)]
        memory = [self._shuffle_task(index) for index in range(len(self.spec.memory))]
        made = {task.name for task in memory}
        kept = [name for name in tensor_layout(self.after) if name.startswith("memory.") and name not in made]
        return {"memory": memory + [TensorTask.copy(self.source, name) for name in kept], "tables": tables}

    def _table_tasks(self, name: str) -> list[TensorTask]:
        return [self._sorted_task(name, part) for part in table_layout(self.spec.tables[name])]

    def _sorted_task(self, name: str, part: str) -> TensorTask:
        info, order = self.source.info(f"tables.{name}.{part}"), self.order[name]
        cores = info.shape[0] // len(order)  # the scales of an expanded table: M a row

        def rows(start: int, stop: int) -> np.ndarray:
            wanted = np.arange(start, stop)
            return self.source.gather(info.name, order[wanted // cores] * cores + wanted % cores)

        return TensorTask(info.name, info.dtype, info.shape, rows, gather_scratch(info.shape, info.dtype, info.dtype))

    def _shuffle_task(self, index: int) -> TensorTask:
        layer, slots = self.spec.memory[index], Slots.of(self.spec, index, self.source)
        dtype = "int32" if layer.virtual_slots <= _LARGEST_INT32 else "int64"
        place = self.place[layer.table]

        def rows(start: int, stop: int) -> np.ndarray:
            return _moved_sigma(layer, slots.sigma(start, stop), place).astype(dtype)

        shape = (layer.virtual_slots,)
        return TensorTask(f"memory.{index}.shuffle", dtype, shape, rows, 4 * gather_scratch(shape, dtype, dtype))

    def write(self, stage: Stage, groups: dict[str, list[TensorTask]]) -> None:
        made = {task.name for tasks in groups.values() for task in tasks}
        carry(stage, self.source, [name for name in tensor_layout(self.after) if name not in made])
        for group, tasks in groups.items():
            stage.write_tensors(group, tasks)
        stage.write_json("config.json", self.after.to_config())

    def receipt(self, stage: Stage) -> dict[str, Any]:
        from .receipt import fold_receipt

        receipt = fold_receipt((self.spec, self.source), (self.after, staged(stage)))
        for layer in receipt["layers"]:
            layer |= {"choice": "order", "reason": "asked for by --order frequency"}
        return receipt | {"tables": [self._pages(name) for name in self.spec.tables]}

    def _pages(self, name: str) -> dict[str, Any]:
        """The fewest pages that hold 90% of the accesses, before and after, and the share of the hottest 1% of rows."""
        seen = self.accesses[name]
        row_bytes = self.source.info(f"tables.{name}.values").nbytes / len(seen)
        counted = {
            f"{size}_pages_{when}": _covering(rows, row_bytes, page)
            for size, page in PAGES.items()
            for when, rows in (("before", seen), ("after", seen[self.order[name]]))
        }
        hot = profiling.share(seen[self.order[name]], 0.01, int(seen.sum()))
        return {"table": name, "rows": len(seen), "accesses": int(seen.sum()), "hottest_1_percent": hot, **counted}


def _moved(layer: MemoryLayerSpec, place: np.ndarray) -> MemoryLayerSpec:
    empty = layer.empty_slot
    if empty is not None:
        empty = int(_moved_sigma(layer, np.array([empty]), place)[0])
    return replace(layer, shuffle=True, empty_slot=empty)


def _moved_sigma(layer: MemoryLayerSpec, sigma: np.ndarray, place: np.ndarray) -> np.ndarray:
    """block*slots + position in the window, of the same row at its new place."""
    rows = len(place)
    block, row = sigma // layer.slots, (sigma % layer.slots + layer.offset) % rows
    moved: np.ndarray = block * layer.slots + (place[row] - layer.offset) % rows
    return moved


def _covering(seen: np.ndarray, row_bytes: float, page: int) -> int:
    """The fewest pages whose rows take 90% of the accesses; a row counts for the page where it begins."""
    pages = np.bincount((np.arange(len(seen)) * row_bytes // page).astype(np.int64), seen)
    ranked = np.cumsum(np.sort(pages)[::-1])
    return int(np.searchsorted(ranked, COVERED * ranked[-1]) + 1) if len(ranked) and ranked[-1] else 0
