"""What quantising makes of a model: its description, the bytes that a token reads, the stage's work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint.header import itemsize
from ..checkpoint.writer import chunk_elements
from ..errors import ConfigError, InputError
from ..layout import decoder_shapes, is_linear, tensor_layout
from ..spec import ModelSpec
from ..spec_rules import model_problems
from ..storage import DENSE_BITS, DENSE_BLOCK, SCALE_BYTES, STORAGES
from .choice import Choice, read_report
from .folds import ItemBytes
from .scratch import quantize_scratch
from .stages import Piece, StageWork
from .work import Tensors

NOTHING_ASKED = "nothing to do: give --tables int8, int4 or float8_e4m3, or --dense int8 or int4"


def quantized_spec(spec: ModelSpec, tables: str | None, dense: str | None = None) -> ModelSpec:
    """The description with every table, and the dense weights, stored so; None leaves them.

    InputError where nothing is asked for, or what cannot be.
    """
    if tables is None and dense is None:
        raise InputError(f"quantize: {NOTHING_ASKED}")
    after = spec if tables is None else _with_tables(spec, tables)
    after = after if dense is None else _with_dense(after, dense)
    problems = model_problems(after)
    if problems:
        raise ConfigError("quantize", problems)
    return after


def _with_dense(spec: ModelSpec, storage: str) -> ModelSpec:
    """Quantised linear layers; a tied embedding stays float and gets a quantised copy, which multiplies the head."""
    decoder = spec.decoder
    if storage not in DENSE_BITS:
        raise InputError(f"--dense: expected one of {', '.join(DENSE_BITS)}, found {storage!r}")
    if decoder.dense != "float":
        raise InputError(
            f"quantize: --dense: the dense weights are quantised to {decoder.dense} already; start from the checkpoint "
            "that they were quantised from"
        )
    if decoder.experts:
        raise InputError("quantize: --dense: a mixture of experts multiplies weights that MatMulNBits cannot gather")
    odd = [(n, s) for n, s in decoder_shapes(decoder).items() if is_linear(n, s) and s[1] % DENSE_BLOCK]
    if odd or decoder.hidden_size % DENSE_BLOCK:
        name, shape = odd[0] if odd else ("model.embed_tokens.weight", (decoder.vocab_size, decoder.hidden_size))
        raise InputError(
            f"quantize: --dense: tensor {name} {list(shape)}: rows must be a multiple of {DENSE_BLOCK} numbers"
        )
    kind: Any = storage
    return replace(spec, decoder=replace(decoder, dense=kind, tie_embeddings=False))


def _with_tables(spec: ModelSpec, storage: str) -> ModelSpec:
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
    kind: Any = storage
    return replace(spec, tables={name: replace(table, storage=kind) for name, table in spec.tables.items()})


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
