"""Fold implicit value expansion: the linear layers W_o and the shuffle disappear into one row a virtual slot.

F[j, c, :] = W_{p(sigma(j))}[:, columns of c] . V[row(sigma(j)), columns of c]   (spec §4; P1 §3.4)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.cast import cast
from ultramem_deploy.planning.scratch import TILE, expand_scratch, gather_scratch
from ultramem_deploy.spec import ModelSpec

from .rounding import round_rows
from .slots import Slots


@dataclass(frozen=True)
class ExpandedLayer:
    """Computes rows of one layer's expanded tables, called `table`, from the unfolded checkpoint."""

    slots: Slots
    table: str
    hidden: int

    @classmethod
    def of(cls, spec: ModelSpec, folded: ModelSpec, index: int, source: Checkpoint) -> ExpandedLayer:
        return cls(Slots.of(spec, index, source), folded.memory[index].table, spec.decoder.hidden_size)

    def tasks(self, dtype: str | None) -> list[TensorTask]:
        """The expanded values [E*N, M*d] and, for gated memories, the pre-values in the same order."""
        slots, source = self.slots, f"tables.{self.slots.layer.table}"
        stored = slots.source.info(f"{source}.values").dtype
        out = dtype or stored
        shape = (slots.layer.virtual_slots, slots.layer.cores * self.hidden)
        scratch = expand_scratch(shape, out, slots.table.value_width, stored)
        tasks = [TensorTask(f"tables.{self.table}.values", out, shape, lambda a, b: self._rows(out, a, b), scratch)]
        if slots.table.pre_value_width:
            tasks.append(gathered_task(slots, "pre_values", self.table))
        return tasks

    def _rows(self, dtype: str, start: int, stop: int) -> np.ndarray:
        slots, where = self.slots, f"fold: expanded table of memory layer {self.slots.index}"
        block, row = slots.block_and_row(start, stop)
        order = np.argsort(row, kind="stable")  # reading in table order keeps a file's pages together
        weight = _projection(slots, self.hidden)
        out = np.empty((stop - start, slots.layer.cores, self.hidden), numpy_dtype(dtype))
        width = weight.shape[2]
        for p in range(weight.shape[0]):
            chosen = order[block[order] == p]
            for tile in np.array_split(chosen, max(1, round(len(chosen) / TILE))):
                stored = slots.source.gather(f"tables.{slots.layer.table}.values", row[tile])
                values, product = _scratch("values", stored.shape), _scratch("product", (len(tile), self.hidden))
                values[...] = stored
                for core in range(slots.layer.cores):
                    np.matmul(values[:, core * width : (core + 1) * width], weight[p, core], out=product)
                    round_rows(where, product, out[:, core], tile)
        out[slots.empty(start, stop)] = 0
        return out.reshape(stop - start, -1)


_held = threading.local()


def _scratch(name: str, shape: tuple[int, int]) -> np.ndarray:
    """A float64 array of this thread's own, kept from tile to tile: fresh pages cost a tenth of the products."""
    held = getattr(_held, name, None)
    if held is None or held.size < shape[0] * shape[1]:
        held = np.empty(shape[0] * shape[1], np.float64)
        setattr(_held, name, held)
    part: np.ndarray = held[: shape[0] * shape[1]].reshape(shape)
    return part


@lru_cache(maxsize=1)
def _projection(slots: Slots, hidden: int) -> np.ndarray:
    """W_o as float64 [blocks, cores, D/M, d]; one layer's is held at a time, for layers are written in turn."""
    cores, width = slots.layer.cores, slots.table.value_width
    name = f"memory.{slots.index}.output.weight"
    weight = slots.source.read_rows(name, 0, hidden).astype(np.float64)
    parts = weight.reshape(hidden, slots.layer.output_blocks, cores, width // cores)
    return np.ascontiguousarray(parts.transpose(1, 2, 3, 0))


def release_projection() -> None:
    """Let go of the weights that the last layer was expanded with."""
    _projection.cache_clear()


def gathered_task(slots: Slots, part: str, table: str, dtype: str | None = None) -> TensorTask:
    """The `part` of a layer's table ("values" or "pre_values") in retrieval order, as `table`'s."""
    info = slots.source.info(f"tables.{slots.layer.table}.{part}")
    name, out = f"tables.{table}.{part}", dtype or info.dtype
    shape = (slots.layer.virtual_slots, *info.shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        return cast(f"fold: tensor {name}", slots.rows(part, start, stop), out)

    return TensorTask(name, out, shape, rows, gather_scratch(shape, out, info.dtype))
