"""`experts`: every neuron of a mixture of experts becomes a slot; rows are experts, columns neurons inside one.

A slot's pre-values are the neuron's gate and up rows and its value the down column, so a chosen neuron is evaluated
exactly. The router chooses rows as it chose experts and weighs them as before; column keys choose within. With all
columns of the chosen rows (`active` 1) the memory is the mixture, term by term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.layout import SELECTION_BIAS
from ultramem_deploy.spec import ExpertsSpec, MemoryLayerSpec, ModelSpec, TableSpec

from .expert_columns import Columns
from .expert_options import slots_taken


def expert_spec(spec: ModelSpec, experts: ExpertsSpec, active: float) -> ModelSpec:
    """The description with a memory layer for every block of experts; what experts share stays dense."""
    decoder, blocks = spec.decoder, experts.layers
    if experts.shared_width:
        kept = replace(experts, layers=(), shared_layers=tuple(sorted((*experts.shared_layers, *blocks))))
        decoder = replace(decoder, experts=kept)
    else:
        widths = [0 if block in blocks else decoder.ffn_width(block) for block in range(decoder.num_layers)]
        decoder = replace(decoder, experts=None, ffn_widths=tuple(widths))
    layers = tuple(_layer(block, experts, decoder.hidden_size, active) for block in blocks)
    rows = experts.count * experts.width
    tables = {table_name(block): TableSpec(rows, decoder.hidden_size, 2 * decoder.hidden_size) for block in blocks}
    changed = replace(spec, decoder=decoder, memory=layers, tables=tables)
    return ModelSpec.from_config(changed.to_config(), "upcycle")


def table_name(block: int) -> str:
    """The table that holds a block's neurons."""
    return f"block{block}"


def _layer(block: int, experts: ExpertsSpec, hidden: int, active: float) -> MemoryLayerSpec:
    return MemoryLayerSpec(
        kind="pkm",
        read_block=block,
        write_block=block,
        heads=1,
        top_m=slots_taken(experts, active),
        row_keys=experts.count,
        col_keys=experts.width,
        key_width=hidden,
        table=table_name(block),
        slots=experts.count * experts.width,
        scoring="additive",
        cores=1,
        routing=experts.routing,
        gate_activation="swiglu",
        expanded=True,
    )


def expert_tasks(
    source: Checkpoint, experts: ExpertsSpec, columns: Sequence[Columns]
) -> tuple[list[TensorTask], list[TensorTask]]:
    """The memory layers' tensors and their tables, in the source's dtypes; `columns` in the order of the blocks."""
    memory, tables = [], []
    for index, (block, chosen) in enumerate(zip(experts.layers, columns, strict=True)):
        prefix, name = f"model.layers.{block}.mlp", f"memory.{index}"
        memory.append(_reshaped(source, f"{prefix}.gate.weight", f"{name}.row_keys"))
        dtype = source.info(f"{prefix}.gate.weight").dtype
        keys = chosen.keys.astype(numpy_dtype(dtype))
        memory.append(TensorTask.of(f"{name}.col_keys", keys[None, None]))
        memory.append(TensorTask.of(f"{name}.col_bias", chosen.bias.astype(np.float32)))
        if experts.routing.selection_bias:
            memory.append(TensorTask.copy(source, f"{prefix}.gate.{SELECTION_BIAS}", f"{name}.{SELECTION_BIAS}"))
        table = f"tables.{table_name(block)}"
        tables.append(_table(source, f"{table}.values", prefix, experts, chosen, ("down_proj",)))
        tables.append(_table(source, f"{table}.pre_values", prefix, experts, chosen, ("gate_proj", "up_proj")))
    return memory, tables


def _reshaped(source: Checkpoint, name: str, new_name: str) -> TensorTask:
    """A matrix [n, d] as keys [1, 1, n, d]."""
    info = source.info(name)
    return TensorTask(new_name, info.dtype, (1, 1, *info.shape), lambda start, stop: source.array(name)[None, None])


def _table(
    source: Checkpoint, name: str, prefix: str, experts: ExpertsSpec, columns: Columns, parts: tuple[str, ...]
) -> TensorTask:
    """Neurons as rows, expert by expert in the order of their columns: up and gate rows as they are, down columns."""
    first = source.info(f"{prefix}.experts.0.{parts[0]}.weight")
    hidden = first.shape[0] if parts == ("down_proj",) else first.shape[1]
    width, shape = experts.width, (experts.count * experts.width, len(parts) * hidden)

    def one(expert: int) -> np.ndarray:
        held = [source.array(f"{prefix}.experts.{expert}.{part}.weight") for part in parts]
        neurons: np.ndarray = held[0].T if parts == ("down_proj",) else np.concatenate(held, axis=1)
        ordered: np.ndarray = neurons[columns.order[expert]]
        return ordered

    def rows(start: int, stop: int) -> np.ndarray:
        touched = range(start // width, -(-stop // width))
        return np.concatenate([one(e)[max(start - e * width, 0) : stop - e * width] for e in touched])

    # A chunk, and one expert as read, turned and put in order.
    scratch = (chunk_elements(shape, first.dtype) + 3 * width * shape[1]) * numpy_dtype(first.dtype).itemsize
    return TensorTask(name, first.dtype, shape, rows, scratch)
