"""The stage `quantize`: a canonical checkpoint in, the same with quantised tables out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.carry import carry, staged
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.defaults import DEFAULT_BUDGET
from ultramem_deploy.layout import addressed_cores, tensor_layout
from ultramem_deploy.model.loading import check_tensors
from ultramem_deploy.planning.quantization import quantized_spec
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.storage import SCALE_BYTES

from .quality import Sample, perplexities, sample_text
from .table import TableTensor, fit_and_measure

Progress = Callable[[int, int, str], None]


def quantize_checkpoint(
    src: Path,
    out: Path,
    *,
    tables: str,
    text: Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: int | None = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out`: the tables of `src` as `tables` ("int8", "int4" or "float8_e4m3"), every other shard linked.

    Returns the receipt: the error of every table as it was written, and the perplexity before and after on `text`
    (default: the Python language reference's held-out topics, where there is a tokenizer). Raises InputError for a
    model without memory layers, tables that are quantised already or cannot be stored so, or too small a disk or
    budget.
    """
    job = QuantizeJob.plan(src, tables)
    sample = sample_text(src, text, job.spec)
    options = {"tables": tables, "text": sample.identity if sample else None}
    with Stage(
        out,
        "quantize",
        source_record(src),
        options,
        overwrite=overwrite,
        copy=copy,
        jobs=jobs,
        memory_budget=memory_budget,
        held_bytes=job.held_bytes,
        progress=progress,
    ) as stage:
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True}
        stage.receipt = job.write(stage) | job.quality(stage, sample)
        for file in companion_files(src):
            stage.link_file(file)
    return stage.receipt | {"up_to_date": False} | stage.notes


@dataclass(frozen=True)
class QuantizeJob:
    """One checkpoint, what it becomes, and the table tensors that change."""

    spec: ModelSpec
    after: ModelSpec
    source: Checkpoint
    tables: list[TableTensor]

    @classmethod
    def plan(cls, src: Path, storage: str) -> QuantizeJob:
        spec, source = ModelSpec.load(src), Checkpoint.open(src)
        after = quantized_spec(spec, storage)
        check_tensors(spec, source)
        names = [name for name, tensor in tensor_layout(spec).items() if tensor.role == "table"]
        tensors = [TableTensor(name, source, storage, _cores(spec, name)) for name in names]
        return cls(spec, after, source, tensors)

    @property
    def held_bytes(self) -> int:
        """Bytes held beside the chunks: every table's scales, until they are written."""
        return sum(SCALE_BYTES * table.rows * table.cores for table in self.tables)

    def write(self, stage: Stage) -> dict[str, Any]:
        """Codes, then scales, which are fitted to the codes as they were written; returns the error of each tensor."""
        scales: dict[str, np.ndarray] = {}
        groups = {
            "tables": [t.codes_task() for t in self.tables],
            "scales": [t.scales_task(scales) for t in self.tables],
        }
        stage.require_room(groups, "choose --tables int4")
        made = {task.name for tasks in groups.values() for task in tasks}
        carry(stage, self.source, [name for name in tensor_layout(self.after) if name not in made])
        stage.write_tensors("tables", groups["tables"])
        errors = []
        for table in self.tables:
            scales[table.scales], error = fit_and_measure(table, staged(stage), stage.jobs, stage.progress)
            errors.append({"tensor": table.name, "storage": table.storage} | asdict(error) | self._bytes(table, groups))
        stage.write_tensors("scales", groups["scales"])
        stage.write_json("config.json", self.after.to_config())
        return {
            "tables": errors,
            "bytes_before": sum(one["bytes_before"] for one in errors),
            "bytes_after": sum(one["bytes_after"] for one in errors),
        }

    def _bytes(self, table: TableTensor, groups: dict[str, list[TensorTask]]) -> dict[str, int]:
        made = [task for tasks in groups.values() for task in tasks if task.name in (table.name, table.scales)]
        return {
            "bytes_before": self.source.info(table.name).nbytes,
            "bytes_after": sum(task.nbytes for task in made),
        }

    def quality(self, stage: Stage, sample: Sample | None) -> dict[str, Any]:
        return perplexities((self.spec, self.source), (self.after, staged(stage)), sample, stage.progress)


def _cores(spec: ModelSpec, tensor: str) -> int:
    """Rows that an operator addresses in one row of a table's tensor: a gate's rows are never split."""
    _, table, part = tensor.split(".")
    return addressed_cores(spec, table) if part == "values" else 1
