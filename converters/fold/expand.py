"""Fold implicit value expansion: the linear layers W_o and the shuffle disappear into one row a virtual slot.

F[j, c, :] = W_{p(sigma(j))}[:, columns of c] . V[row(sigma(j)), columns of c]   (spec §4; P1 §3.4)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.checkpoint.cast import cast
from ultramem_deploy.errors import InputError
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, NormSpec, TableSpec


def expanded_table_name(index: int) -> str:
    return f"expanded{index}"


def expanded_spec(spec: ModelSpec) -> ModelSpec:
    """The description after expanding every layer. Raises InputError where a layer cannot be expanded."""
    if not spec.memory:
        raise InputError("fold: the model has no memory layers; upcycle it or convert a checkpoint that has them")
    layers, tables = [], {}
    for index, layer in enumerate(spec.memory):
        _refuse(index, layer)
        name, table = expanded_table_name(index), spec.tables[layer.table]
        width = layer.cores * spec.decoder.hidden_size
        tables[name] = TableSpec(layer.virtual_slots, width, table.pre_value_width)
        layers.append(_expanded_layer(layer, name))
    return replace(spec, memory=tuple(layers), tables=tables)


def _refuse(index: int, layer: MemoryLayerSpec) -> None:
    if layer.expanded:
        raise InputError(f"fold: memory layer {index} is already expanded; start from the unfolded checkpoint")
    if layer.output_gate:
        raise InputError(
            f"fold: memory layer {index} ({layer.kind}) cannot be expanded: a silu gate stands between its table and "
            "its output projection"
        )


def _expanded_layer(layer: MemoryLayerSpec, table: str) -> MemoryLayerSpec:
    return replace(
        layer,
        table=table,
        slots=layer.virtual_slots,
        offset=0,
        blocks=1,
        sum_blocks=False,
        shuffle=False,
        key_norm=None,
        expanded=True,
    )


@dataclass(frozen=True)
class ExpandedLayer:
    """Computes rows of one layer's expanded tables from the unfolded checkpoint."""

    index: int
    layer: MemoryLayerSpec
    table: TableSpec
    hidden: int
    source: Checkpoint

    @classmethod
    def of(cls, spec: ModelSpec, index: int, source: Checkpoint) -> ExpandedLayer:
        layer = spec.memory[index]
        return cls(index, layer, spec.tables[layer.table], spec.decoder.hidden_size, source)

    def tasks(self, dtype: str | None) -> list[TensorTask]:
        """The expanded values [E*N, M*d] and, for gated memories, the pre-values in the same order."""
        name, source_name = expanded_table_name(self.index), f"tables.{self.layer.table}"
        out = dtype or self.source.info(f"{source_name}.values").dtype
        shape = (self.layer.virtual_slots, self.layer.cores * self.hidden)
        weight = self._projection()
        tasks = [TensorTask(f"tables.{name}.values", out, shape, lambda a, b: self._rows(weight, out, a, b))]
        if self.table.pre_value_width:
            info = self.source.info(f"{source_name}.pre_values")
            shape = (self.layer.virtual_slots, self.table.pre_value_width)
            tasks.append(TensorTask(f"tables.{name}.pre_values", info.dtype, shape, self._pre_rows))
        return tasks

    def _projection(self) -> np.ndarray:
        """W_o as float64 [blocks, cores, D/M, d]."""
        cores, width = self.layer.cores, self.table.value_width
        weight = self.source.array(f"memory.{self.index}.output.weight").astype(np.float64)
        return weight.reshape(self.hidden, self.layer.output_blocks, cores, width // cores).transpose(1, 2, 3, 0)

    def _rows(self, weight: np.ndarray, dtype: str, start: int, stop: int) -> np.ndarray:
        block, row = self._block_and_row(start, stop)
        # Reading in table order keeps a mapped table's pages together.
        order = np.argsort(row, kind="stable")
        gathered = np.empty((stop - start, self.table.value_width), np.float64)
        gathered[order] = self.source.array(f"tables.{self.layer.table}.values")[row[order]]
        values = gathered.reshape(stop - start, self.layer.cores, -1)
        out = np.empty((stop - start, self.layer.cores, self.hidden), np.float64)
        for p in range(weight.shape[0]):
            chosen = block == p
            for core in range(self.layer.cores):
                out[chosen, core] = values[chosen, core] @ weight[p, core]
        return cast(f"fold: expanded table of memory layer {self.index}", out.reshape(stop - start, -1), dtype)

    def _pre_rows(self, start: int, stop: int) -> np.ndarray:
        _, row = self._block_and_row(start, stop)
        return np.asarray(self.source.array(f"tables.{self.layer.table}.pre_values")[row])

    def _block_and_row(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        layer = self.layer
        if layer.shuffle:
            sigma = self.source.rows(f"memory.{self.index}.shuffle", start, stop).astype(np.int64)
        else:
            sigma = np.arange(start, stop, dtype=np.int64)
        block = sigma // layer.slots if layer.output_blocks > 1 else np.zeros_like(sigma)
        return block, (sigma % layer.slots + layer.offset) % self.table.rows


def key_tasks(spec: ModelSpec, index: int, source: Checkpoint) -> list[TensorTask]:
    """The layer's keys with Norm_k applied once (spec §4, fold "keys"), in float32; none where there is no norm.

    Rounding normalised keys to a narrower stored dtype would change which slots are chosen.
    """
    norm = spec.memory[index].key_norm
    if norm is None:
        return []
    names = [f"memory.{index}.{side}" for side in ("row_keys", "col_keys")]
    return [TensorTask.of(n, _normalised(norm, f"memory.{index}", n, source).astype(np.float32)) for n in names]


def _normalised(norm: NormSpec, prefix: str, name: str, source: Checkpoint) -> np.ndarray:
    """Norm_k(keys) [H, R, n, kdim] in float64."""
    keys: np.ndarray = source.array(name).astype(np.float64)
    if norm.kind == "layer":
        keys = keys - keys.mean(-1, keepdims=True)
    keys = keys / np.sqrt((keys**2).mean(-1, keepdims=True) + norm.eps)
    if norm.affine:
        keys = keys * source.array(f"{prefix}.key_norm.weight").astype(np.float64)
    if norm.affine and norm.bias:
        keys = keys + source.array(f"{prefix}.key_norm.bias").astype(np.float64)
    return keys
