"""Fold the shuffle: rows in retrieval order where a layer has a table of its own and E = 1, else int32 (spec §4)."""

from __future__ import annotations

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.layout import table_layout
from ultramem_deploy.spec import ModelSpec

from .expand import gathered_task
from .slots import Slots


def reorder_tasks(
    spec: ModelSpec, folded: ModelSpec, index: int, source: Checkpoint, dtype: str | None
) -> list[TensorTask]:
    """The layer's table [virtual slots, D] in retrieval order, or its shuffle [virtual slots] as int32."""
    slots, after = Slots.of(spec, index, source), folded.memory[index]
    if after.shuffle:
        return [_int32_task(slots)]
    tasks = [gathered_task(slots, "values", after.table, dtype)]
    if slots.table.pre_value_width:
        tasks.append(gathered_task(slots, "pre_values", after.table))
    parts = [part for part in table_layout(slots.table) if part.endswith("_scales")]
    return tasks + [gathered_task(slots, part, after.table) for part in parts]


def _int32_task(slots: Slots) -> TensorTask:
    shape = (slots.layer.virtual_slots,)

    def rows(start: int, stop: int) -> np.ndarray:
        return slots.sigma(start, stop).astype(np.int32)

    # The entries as stored and as int64.
    scratch = 16 * chunk_elements(shape, "int32")
    return TensorTask(f"memory.{slots.index}.shuffle", "int32", shape, rows, scratch)
