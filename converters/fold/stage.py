"""The stage `fold`: a checkpoint with implicit value expansion in, one with folded tables, shuffles or keys out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.carry import carry, staged
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.defaults import BATCHES, DEFAULT_BUDGET
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.option_problems import refuse
from ultramem_deploy.planning.choice import Choice, choose_folds, folds_of
from ultramem_deploy.planning.folds import folded_spec
from ultramem_deploy.planning.machine import new_table_room
from ultramem_deploy.planning.scratch import projection_held
from ultramem_deploy.spec import ModelSpec

from .expand import ExpandedLayer, release_projection
from .keys import key_tasks, rank_one_tasks
from .options import fold_problems
from .reorder import reorder_tasks

_ADVICE = {"expand": "choose --mode auto, shuffle or keys", "auto": "choose --mode keys"}


def fold_checkpoint(
    src: Path,
    out: Path,
    *,
    mode: str = "expand",
    dtype: str = "keep",
    batches: Sequence[int] | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: int | None = DEFAULT_BUDGET,
    executor: str = "local",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write `out`: the decoder's shards linked, every memory layer folded by `mode`. Returns the preservation receipt.

    expand: tables of M*d numbers a virtual slot. shuffle: rows in retrieval order, or an int32 shuffle. keys: the key
    norm alone, which the others fold as well. rank1: keys, and stage 1 of the retrieval reads one key matrix a side,
    folded with u or v. auto: what `plan` chooses for `batches`. Products are computed in float64; rewritten table
    values are rounded once to `dtype` ("keep": that of the source's table).
    Raises InputError for unknown options, a model without foldable layers, or too small a disk or memory budget.
    """
    refuse(fold_problems(mode=mode, dtype=dtype, batch=batches))
    work = FoldJob.plan(src, out, mode, None if dtype == "keep" else dtype, batches or BATCHES)
    groups = work.groups()
    chunks_in_flight([task for tasks in groups.values() for task in tasks], 1, memory_budget, work.held_bytes)
    options = {"mode": mode, "dtype": dtype, "folds": [choice.whole for choice in work.choices]}
    # One thread a chunk: the bytes must not depend on how many cores a machine has.
    with (
        threadpool_limits(1),  # type: ignore[no-untyped-call]
        Stage(
            out,
            "fold",
            source_record(src),
            options | ({"batch": list(batches or BATCHES)} if mode == "auto" else {}),
            overwrite=overwrite,
            copy=copy,
            jobs=jobs,
            memory_budget=memory_budget,
            executor=executor,
            held_bytes=work.held_bytes,
            progress=progress,
        ) as stage,
    ):
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True} | stage.notes
        stage.require_room(groups, _ADVICE.get(mode, ""))
        work.write(stage, groups)
        for file in companion_files(src):
            stage.link_file(file)
        stage.receipt = work.receipt(stage)
    return stage.receipt | {"up_to_date": False} | stage.notes


@dataclass(frozen=True)
class FoldJob:
    """One checkpoint and how each of its layers is folded."""

    spec: ModelSpec
    folded: ModelSpec
    choices: list[Choice]
    source: Checkpoint
    dtype: str | None

    @classmethod
    def plan(cls, src: Path, out: Path, mode: str, dtype: str | None, batches: Sequence[int]) -> FoldJob:
        spec, source = ModelSpec.load(src), Checkpoint.open(src)
        dtypes = {name: info.dtype for name, info in source.tensors.items()}
        missing = sorted(name for name in tensor_layout(spec) if name not in dtypes)
        if missing:
            source.info(missing[0])
        choices = choose_folds(spec, dtypes, mode, batches, new_table_room(out))
        folded = folded_spec(spec, *folds_of(choices))
        if dtype is not None and folded.tables == spec.tables:
            raise InputError("--dtype: applies to rewritten table values, and this fold rewrites none; leave it out")
        if dtype is not None and any(table.storage != "float" for table in spec.tables.values()):
            raise InputError("--dtype: the source's tables are quantised, and codes keep their type; leave it out")
        return cls(spec, folded, choices, source, dtype)

    @property
    def held_bytes(self) -> int:
        """Bytes held beside the chunks: the output projection of the layer that is being expanded."""
        sizes = [
            projection_held(
                layer.output_blocks, self.spec.tables[layer.table].value_width, self.spec.decoder.hidden_size
            )
            for layer, choice in zip(self.spec.memory, self.choices, strict=True)
            if choice.fold == "expand"
        ]
        return max(sizes, default=0)

    def groups(self) -> dict[str, list[TensorTask]]:
        """What is written anew, by the group of its shards."""
        memory: list[TensorTask] = []
        tables: list[TensorTask] = []
        for index, choice in enumerate(self.choices):
            made = self._tasks(index, choice)
            tables += [task for task in made if task.name.startswith("tables.")]
            memory += [task for task in made if not task.name.startswith("tables.")]
        made_names = {task.name for task in memory}
        kept = [name for name in self._names("memory.") if name not in made_names]
        memory += [TensorTask.copy(self.source, name) for name in kept]
        return {group: tasks for group, tasks in (("memory", memory), ("tables", tables)) if tasks}

    def _tasks(self, index: int, choice: Choice) -> list[TensorTask]:
        tasks = key_tasks(self.spec, index, self.source) if choice.fold != "none" else []
        if choice.rank_one:
            tasks += rank_one_tasks(self.spec, index, self.source)
        if choice.fold == "expand":
            tasks += ExpandedLayer.of(self.spec, self.folded, index, self.source).tasks(self.dtype)
        elif choice.fold == "shuffle":
            tasks += reorder_tasks(self.spec, self.folded, index, self.source, self.dtype)
        return tasks

    def _names(self, prefix: str) -> list[str]:
        return [name for name in tensor_layout(self.folded) if name.startswith(prefix)]

    def write(self, stage: Stage, groups: dict[str, list[TensorTask]]) -> None:
        made = {task.name for tasks in groups.values() for task in tasks}
        carry(stage, self.source, [name for name in tensor_layout(self.folded) if name not in made])
        try:
            for group, tasks in groups.items():
                stage.write_tensors(group, tasks)
        finally:
            release_projection()
        stage.write_json("config.json", self.folded.to_config())

    def receipt(self, stage: Stage) -> dict[str, Any]:
        from .receipt import fold_receipt

        receipt = fold_receipt((self.spec, self.source), (self.folded, staged(stage)))
        for layer, choice in zip(receipt["layers"], self.choices, strict=True):
            layer |= {"choice": choice.name, "rank_one_keys": choice.rank_one, "reason": choice.reason}
        return receipt
