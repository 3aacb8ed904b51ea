"""The stage `quantize`: a canonical checkpoint in, the same with quantised tables or dense weights out."""

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
from ultramem_deploy.layout import addressed_cores, decoder_shapes, is_linear, tensor_layout
from ultramem_deploy.model.loading import check_tensors
from ultramem_deploy.planning.quantization import quantized_spec
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.storage import DENSE_BLOCK, SCALE_BYTES

from .dense import DenseWeight, dense_error, quantizer
from .quality import Sample, perplexities, sample_text
from .table import TableTensor, fit_and_measure

Progress = Callable[[int, int, str], None]


def quantize_checkpoint(
    src: Path,
    out: Path,
    *,
    tables: str | None = None,
    dense: str | None = None,
    text: Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: int | None = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out`: the tables of `src` as `tables` ("int8", "int4" or "float8_e4m3"), its linear layers as `dense`
    ("int8" or "int4"); every other shard is linked.

    Returns the receipt: the error of every table and of the dense weights as they were written, and the perplexity
    before and after on `text` (default: held-out topics of the Python language reference, where there is a tokenizer).
    Raises InputError for a model without memory layers, tables that are quantised already or cannot be stored so, or
    too small a disk or budget.
    """
    job = QuantizeJob.plan(src, tables, dense)
    sample = sample_text(src, text, job.spec)
    options = {"tables": tables, "dense": dense, "text": sample.identity if sample else None}
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
    """One checkpoint, what it becomes, and the tensors that change."""

    spec: ModelSpec
    after: ModelSpec
    source: Checkpoint
    tables: list[TableTensor]
    dense: list[DenseWeight]

    @classmethod
    def plan(cls, src: Path, tables: str | None, dense: str | None) -> QuantizeJob:
        spec, source = ModelSpec.load(src), Checkpoint.open(src)
        after = quantized_spec(spec, tables, dense)
        check_tensors(spec, source)
        names = [name for name, tensor in tensor_layout(spec).items() if tensor.role == "table" and tables]
        tensors = [TableTensor(name, source, str(tables), _cores(spec, name)) for name in names]
        return cls(spec, after, source, tensors, _dense_weights(spec, after, source, dense))

    @property
    def held_bytes(self) -> int:
        """Bytes held beside the chunks: every table's scales, until they are written."""
        return sum(SCALE_BYTES * table.rows * table.cores for table in self.tables)

    def write(self, stage: Stage) -> dict[str, Any]:
        """Codes, then scales, which are fitted to the codes as they were written; returns the error of each tensor."""
        scales: dict[str, np.ndarray] = {}
        groups = {
            "dense": [task for weight in self.dense for task in weight.tasks()],
            "tables": [table.codes_task() for table in self.tables],
            "scales": [table.scales_task(scales) for table in self.tables],
        }
        groups = {group: tasks for group, tasks in groups.items() if tasks}
        stage.require_room(groups, "choose --tables int4")
        made = {task.name for tasks in groups.values() for task in tasks}
        carry(stage, self.source, [name for name in tensor_layout(self.after) if name not in made])
        told = self._write_dense(stage, groups.get("dense", []))
        if self.tables:
            stage.write_tensors("tables", groups["tables"])
        errors = []
        for table in self.tables:
            scales[table.scales], error = fit_and_measure(table, staged(stage), stage.jobs, stage.progress)
            errors.append({"tensor": table.name, "storage": table.storage} | asdict(error) | self._bytes(table, groups))
        if self.tables:
            stage.write_tensors("scales", groups["scales"])
        stage.write_json("config.json", self.after.to_config())
        both = [*errors, *([told] if told else [])]
        total = {when: sum(one[when] for one in both) for when in ("bytes_before", "bytes_after")}
        return {"tables": errors, "dense": told} | total

    def _write_dense(self, stage: Stage, tasks: list[TensorTask]) -> dict[str, Any] | None:
        """Codes and scales of the linear layers; their storage, error and bytes, None where there are none."""
        if not tasks:
            return None
        stage.write_tensors("dense", tasks)
        return {
            "storage": self.after.decoder.dense,
            "block": DENSE_BLOCK,
            "tensors": len(self.dense),
            "relative_rms": dense_error(self.dense, staged(stage)),
            "bytes_before": sum(self.source.info(name).nbytes for name in {weight.stored for weight in self.dense}),
            "bytes_after": sum(task.nbytes for task in tasks),
        }

    def _bytes(self, table: TableTensor, groups: dict[str, list[TensorTask]]) -> dict[str, int]:
        made = [task for tasks in groups.values() for task in tasks if task.name in (table.name, table.scales)]
        return {
            "bytes_before": self.source.info(table.name).nbytes,
            "bytes_after": sum(task.nbytes for task in made),
        }

    def quality(self, stage: Stage, sample: Sample | None) -> dict[str, Any]:
        return perplexities((self.spec, self.source), (self.after, staged(stage)), sample, stage.progress)


def _dense_weights(spec: ModelSpec, after: ModelSpec, source: Checkpoint, storage: str | None) -> list[DenseWeight]:
    """The linear layers of `after`; the head of a tied model is quantised from its embedding."""
    if storage is None:
        return []
    names = [name for name, shape in decoder_shapes(after.decoder).items() if is_linear(name, shape)]
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if spec.decoder.tie_embeddings else {}
    quantizer(storage)
    return [DenseWeight(name, tied.get(name, name), source, storage) for name in names]


def _cores(spec: ModelSpec, tensor: str) -> int:
    """Rows that an operator addresses in one row of a table's tensor: a gate's rows are never split."""
    _, table, part = tensor.split(".")
    return addressed_cores(spec, table) if part == "values" else 1
