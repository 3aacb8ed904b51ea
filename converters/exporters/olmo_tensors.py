"""The tensors of an official checkpoint from canonical ones: fused again, permuted back, dead rows zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask, numpy_dtype
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import block_norm_names
from ultramem_deploy.official.description import decoder_spec
from ultramem_deploy.official.layout import HEAD, PRE_TABLE, TABLE, official_layout
from ultramem_deploy.official.model import HEADS_A_QUERY, Official
from ultramem_deploy.spec import ModelSpec

Array = np.ndarray[Any, Any]
PREFIX = "transformer."
WEIGHTS_NAME = "model.pt"
_FUSED = {
    "att_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "ff_proj": ("mlp.up_proj", "mlp.gate_proj"),
}
_MEMORY = {
    "query_norm": "query_norm",
    "keys_norm": "key_norm",
    "values_proj": "output",
    "pre_values_proj": "pre_query",
    "swilu_projection": "output_gate",
}


class OfficialTensors:
    """Makes the tasks that write a model's tensors in the official layout; `warnings` says what was filled in."""

    def __init__(self, spec: ModelSpec, model: Official, source: Checkpoint) -> None:
        self.spec, self.model, self.source = spec, model, source
        self.warnings: list[str] = []
        attention, mlp = block_norm_names(decoder_spec(model), 0)
        self.block_names = {
            "attn_norm": attention,
            "ff_norm": mlp,
            "q_norm": "self_attn.q_norm",
            "k_norm": "self_attn.k_norm",
            "attn_out": "self_attn.o_proj",
            "ff_out": "mlp.down_proj",
        }

    def files(self) -> dict[str, list[TensorTask]]:
        """The tasks of each file: model.pt, or rank_{r}/model.pt with the rank's columns of the tables."""
        tasks, group = self.tasks(), self.model.group
        if group == 1:
            return {WEIGHTS_NAME: tasks}
        return {f"rank_{rank}/{WEIGHTS_NAME}": [_shard(task, rank, group) for task in tasks] for rank in range(group)}

    def tasks(self) -> list[TensorTask]:
        """One task a tensor, in the order of the layout. InputError where a tensor has no place in it."""
        self._check_unit_norms()
        tasks = []
        for name, shape in official_layout(self.model).items():
            task = self._task(name)
            if task.shape != shape:
                raise InputError(
                    f"{self.source.path}: {name} would have shape {list(task.shape)}, expected {list(shape)}"
                )
            tasks.append(TensorTask(PREFIX + name, task.dtype, shape, task.rows))
        return tasks

    def _task(self, name: str) -> TensorTask:
        stem, _, part = name.rpartition(".")
        kind, _, rest = stem.partition(".")
        index, _, inner = rest.partition(".")
        if name in (TABLE, PRE_TABLE):
            return self._table(name)
        if kind == "blocks":
            return self._block(int(index), inner, part)
        if kind == "mem_blocks":
            return self._memory(int(index), f"{inner}.{part}" if inner else part)
        canonical = {"wte": "model.embed_tokens", "ln_f": "model.norm", HEAD: "lm_head"}[stem]
        return self._copy_or(f"{canonical}.{part}", (self.model.embeddings,), 0.0)

    def _table(self, name: str) -> TensorTask:
        if not self.spec.memory:
            return self._constant((self.model.table_rows, self.model.vdim), 0.0)
        table = self.spec.memory[0].table
        return self._copy(f"tables.{table}.{'values' if name == TABLE else 'pre_values'}")

    def _block(self, index: int, name: str, part: str) -> TensorTask:
        prefix = f"model.layers.{index}."
        if name in _FUSED:
            return joined([self._copy(f"{prefix}{one}.{part}") for one in _FUSED[name]])
        full = f"{prefix}{self.block_names[name]}.{part}"
        return self._copy_or(full, (self.model.head_dim,), 0.0 if part == "bias" else 1.0)

    def _memory(self, index: int, name: str) -> TensorTask:
        prefix = f"memory.{index}."
        stem, _, part = name.rpartition(".")
        if stem in _MEMORY:
            # Memory+ has weights of a norm that it computes in vain.
            fill = 0.0 if part == "bias" else 1.0
            return self._copy_or(f"{prefix}{_MEMORY[stem]}.{part}", (self.model.kdim,), fill)
        if name == "keys":
            return self._keys(prefix)
        if name == "query_proj.weight":
            return self._query(prefix, index)
        if name.startswith("tucker_core."):
            return self._core(prefix, int(part))
        if name.startswith("tucker_core_"):
            factor = self._copy(prefix + name[-1])
            shape = (1, factor.shape[0], 1, factor.shape[1])
            return TensorTask(name, factor.dtype, shape, lambda a, b: _all(factor).reshape(shape)[a:b])
        table = self.spec.memory[index].table
        return self._copy(f"{prefix}shuffle" if name == "shuffle_index" else f"tables.{table}.values")

    def _keys(self, prefix: str) -> TensorTask:
        row, col = self._copy(f"{prefix}row_keys"), self._copy(f"{prefix}col_keys")
        heads, rank, side, width = row.shape
        plus = self.model.kind == "memory_plus"

        def rows(start: int, stop: int) -> Array:
            both = np.stack([row.rows(start, stop), col.rows(start, stop)], 1)  # [H, 2, R, n, kdim]
            return both[:, :, 0] if plus else both.transpose(0, 1, 3, 4, 2)

        shape = (heads, 2, side, width) if plus else (heads, 2, side, width, rank)
        return TensorTask("keys", row.dtype, shape, rows)

    def _query(self, prefix: str, index: int) -> TensorTask:
        weight, size = self._copy(f"{prefix}query.weight"), 2 * self.model.kdim
        if self.model.kind == "memory_plus":
            return weight
        heads = weight.shape[0] // size
        parts = [part_of(weight, head * size, (head + 1) * size) for head in range(heads)]
        if heads > 1:
            for head in range(heads):
                if not np.array_equal(_all(parts[head]), _all(parts[head // HEADS_A_QUERY * HEADS_A_QUERY])):
                    raise InputError(
                        f"{self.source.path}: tensor {prefix}query.weight: head {head} has a query of its own; in the"
                        f" official layout {HEADS_A_QUERY} heads share one"
                    )
            return joined(parts[::HEADS_A_QUERY])
        dead = self.model.query_rows - size
        if not dead:
            return weight
        self.warnings.append(f"memory layer {index}: the {dead} dead rows of query_proj are written as zeros")
        return joined([weight, self._constant((dead, weight.shape[1]), 0.0, weight.dtype)])

    def _core(self, prefix: str, number: int) -> TensorTask:
        core = self._copy(f"{prefix}core")
        return TensorTask("core", core.dtype, core.shape[1:], lambda a, b: core.rows(number, number + 1)[0][a:b])

    def _check_unit_norms(self) -> None:
        """Without attention_layer_norm_with_affine there is no place for q/k norm weights: they must be ones."""
        if not self.model.qk_norm or self.model.qk_affine or not self.spec.decoder.norm.affine:
            return
        for index in range(self.model.layers):
            for name, fill in (("weight", 1.0), ("bias", 0.0)):
                for side in "qk":
                    full = f"model.layers.{index}.self_attn.{side}_norm.{name}"
                    if full in self.source.tensors and (_all(self._copy(full)) != fill).any():
                        raise InputError(
                            f"{self.source.path}: tensor {full}: expected {fill} throughout, for the memory layers'"
                            " norms have no weights, and the official code has weights in both or in neither"
                        )

    def _copy(self, name: str) -> TensorTask:
        return TensorTask.copy(self.source, name)

    def _copy_or(self, name: str, shape: tuple[int, ...], value: float) -> TensorTask:
        return self._copy(name) if name in self.source.tensors else self._constant(shape, value)

    def _constant(self, shape: tuple[int, ...], value: float, dtype: str | None = None) -> TensorTask:
        kind = dtype or self.source.info("model.embed_tokens.weight").dtype
        made = numpy_dtype(kind)
        return TensorTask("constant", kind, shape, lambda a, b: np.full((b - a, *shape[1:]), value, made))


def _shard(task: TensorTask, rank: int, group: int) -> TensorTask:
    """What one rank of vertical parallel holds of a tensor: its columns of a table, all of anything else."""
    if task.name.removeprefix(PREFIX) not in (TABLE, PRE_TABLE):
        return task
    width = task.shape[1] // group
    columns = slice(rank * width, (rank + 1) * width)
    return TensorTask(task.name, task.dtype, (task.shape[0], width), lambda a, b: task.rows(a, b)[:, columns])


def _all(task: TensorTask) -> Array:
    return task.rows(0, task.shape[0])


def part_of(task: TensorTask, start: int, stop: int) -> TensorTask:
    """Rows [start, stop) of a task."""
    return TensorTask(
        task.name, task.dtype, (stop - start, *task.shape[1:]), lambda a, b: task.rows(start + a, start + b)
    )


def joined(tasks: Sequence[TensorTask]) -> TensorTask:
    """Tasks of one width and dtype, one after another on the first axis."""
    starts = np.cumsum([0, *(task.shape[0] for task in tasks)]).tolist()

    def rows(start: int, stop: int) -> Array:
        spans = zip(tasks, starts, starts[1:], strict=False)
        wanted = [(task, max(start, first) - first, min(stop, last) - first) for task, first, last in spans]
        return np.concatenate([task.rows(first, last) for task, first, last in wanted if first < last])

    return TensorTask(tasks[0].name, tasks[0].dtype, (starts[-1], *tasks[0].shape[1:]), rows)
