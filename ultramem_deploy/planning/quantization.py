"""What quantising makes of a model: its description, the bytes that a token reads, the stage's work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..checkpoint.header import itemsize
from ..checkpoint.writer import chunk_elements
from ..errors import ConfigError, InputError
from ..layout import tensor_layout
from ..spec import ModelSpec
from ..spec_rules import model_problems
from ..storage import SCALE_BYTES, STORAGES
from .choice import Choice, read_report
from .folds import ItemBytes
from .scratch import quantize_scratch
from .stages import Piece, StageWork
from .work import Tensors


def quantized_spec(spec: ModelSpec, storage: str) -> ModelSpec:
    """The description with every table stored so. InputError where there is none, or one that cannot be."""
    if storage not in STORAGES:
        raise InputError(f"--tables: expected one of {', '.join(STORAGES)}, found {storage!r}")
    if not spec.memory:
        raise InputError("quantize: --tables: the model has no memory layers, so it has no tables; upcycle it first")
    for name, table in spec.tables.items():
        if table.storage != "float":
            raise InputError(
                f"quantize: --tables: table {name!r} is quantised to {table.storage} already; start from the "
                "checkpoint that it was quantised from"
            )
    tables = {name: replace(table, storage=storage) for name, table in spec.tables.items()}  # type: ignore[arg-type]
    after = replace(spec, tables=tables)
    problems = model_problems(after)
    if problems:
        raise ConfigError(f"quantize: --tables {storage}", problems)
    return after


def quantize_report(
    spec: ModelSpec, index: int, storage: str, dtypes: Mapping[str, str], batches: Sequence[int]
) -> dict[str, object]:
    """One layer of the plan: table bytes and bytes read a token at each batch, before and after."""
    after = quantized_spec(spec, storage)
    name = f"tables.{spec.memory[index].table}"
    choice = Choice(storage, f"{dtypes[f'{name}.values']} values become {storage}, one scale a row that is addressed")
    return read_report(
        index, choice, (spec, ItemBytes.of(spec, index, dtypes)), (after, ItemBytes.of(after, index, dtypes)), batches
    )


def quantize_work(spec: ModelSpec, tensors: Tensors, storage: str) -> StageWork:
    """Tables and their scales are written, shards of which nothing is dropped are linked."""
    after = quantized_spec(spec, storage)
    layout = tensor_layout(after)
    changed = {name for name, tensor in layout.items() if tensor.role in ("table", "scales")}
    split = {tensor.file for name, tensor in tensors.items() if name in changed}
    pieces, scales = [], 0
    for name, tensor in layout.items():
        stored = tensors.get(name)
        if stored is None or tensor.dtype is not None:
            count = math.prod(stored.shape) * itemsize(stored.dtype) if stored else 0
            elements = chunk_elements(tensor.shape, str(tensor.dtype)) * 8 // STORAGES[storage].bits
            scratch = quantize_scratch(elements, stored.dtype) if stored else 0
            # Read twice: to choose the codes, and to fit the scales to them.
            pieces.append(Piece(name, tensor.shape, str(tensor.dtype), read=2 * count, scratch=scratch))
            scales += 0 if stored else SCALE_BYTES * tensor.shape[0]
        else:
            pieces.append(Piece(name, stored.shape, stored.dtype, stored.file not in split))
    return StageWork("quantize", pieces, held=scales, less_disk="choose --tables int4")
