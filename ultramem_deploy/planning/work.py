"""What each stage makes of a model, tensor by tensor, from descriptions and dtypes alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.cast import cast_scratch
from ..checkpoint.header import itemsize
from ..checkpoint.writer import chunk_elements
from ..layout import table_layout, tensor_layout
from ..spec import DecoderSpec, ModelSpec
from .folds import folded_spec
from .scratch import expand_scratch, experts_scratch, gather_scratch, key_scratch, projection_held
from .stages import Piece, StageWork

ROPE_POSITIONS = 131072
"""Positions that exported rotary caches cover at most."""
_GRAPH_BYTES = 4 << 20
"""More than the graph of any model of ours takes: weights stay outside."""


@dataclass(frozen=True)
class Stored:
    """A tensor as a source holds it: `file` names the shard, None where it must be decoded or renamed first."""

    shape: tuple[int, ...]
    dtype: str
    file: str | None


Tensors = Mapping[str, Stored]


def converted(tensors: Tensors) -> dict[str, Stored]:
    """The tensors as `convert` leaves them."""
    return {name: Stored(t.shape, _kept(t.dtype), t.file or name.split(".")[0]) for name, t in tensors.items()}


def _kept(dtype: str) -> str:
    return "float32" if dtype == "float64" else dtype


def convert_work(tensors: Tensors, source_bytes: int) -> StageWork:
    """Tensors that lie in a shard as they are wanted are linked with it; every other one is written anew."""
    pieces = []
    for name, tensor in tensors.items():
        dtype = _kept(tensor.dtype)
        count = math.prod(tensor.shape) * itemsize(tensor.dtype)
        scratch = cast_scratch(chunk_elements(tensor.shape, dtype), tensor.dtype, dtype)
        linked = tensor.file is not None and dtype == tensor.dtype
        pieces.append(Piece(name, tensor.shape, dtype, linked, read=count, scratch=scratch))
    wide = any(not piece.linked and piece.dtype == "float32" for piece in pieces)
    advice = "choose convert --dtype bfloat16, which halves float32 tensors, or free some space"
    return StageWork("convert", pieces, hashed=source_bytes, less_disk=advice if wide else "free some space")


def fold_work(
    spec: ModelSpec, tensors: Tensors, folds: Sequence[str], rank_one: Collection[int] = ()
) -> tuple[StageWork, ModelSpec]:
    """Rewritten tables, keys and shuffles, linked shards of which nothing is dropped; and the folded description."""
    after = folded_spec(spec, folds, rank_one)
    made = {
        piece.name: piece for index, fold in enumerate(folds) for piece in _folded(spec, after, index, fold, tensors)
    }
    layout = tensor_layout(after)
    kept = {name for name in layout if name not in made and not name.startswith("memory.")}
    whole = {tensor.file for name, tensor in tensors.items()} - {t.file for n, t in tensors.items() if n not in kept}
    for name in layout:
        if name not in made:
            tensor = tensors[name]
            made[name] = Piece(name, tensor.shape, tensor.dtype, name in kept and tensor.file in whole, _bytes(tensor))
    return StageWork("fold", list(made.values()), held=_held(spec, folds), less_disk="choose fold --mode keys"), after


def _held(spec: ModelSpec, folds: Sequence[str]) -> int:
    sizes = [
        projection_held(layer.output_blocks, spec.tables[layer.table].value_width, spec.decoder.hidden_size)
        for layer, fold in zip(spec.memory, folds, strict=True)
        if fold == "expand"
    ]
    return max(sizes, default=0)


def _bytes(tensor: Stored) -> int:
    return math.prod(tensor.shape) * itemsize(tensor.dtype)


def _folded(spec: ModelSpec, after: ModelSpec, index: int, fold: str, tensors: Tensors) -> list[Piece]:
    layer, new = spec.memory[index], after.memory[index]
    pieces = []
    if fold != "none" and layer.key_norm:
        pieces = [_key_piece(f"memory.{index}.{side}", tensors) for side in ("row_keys", "col_keys")]
    if new.rank_one_keys and not layer.rank_one_keys:
        pieces += [_rank_one_piece(f"memory.{index}.{side}", tensors) for side in ("row", "col")]
    if new.table != layer.table:
        pieces += [_table_piece(spec, after, index, part, tensors) for part in _parts(spec, index)]
    elif fold == "shuffle":
        name, shape = f"memory.{index}.shuffle", (layer.virtual_slots,)
        scratch = 16 * chunk_elements(shape, "int32")
        pieces.append(Piece(name, shape, "int32", read=_bytes(tensors[name]), scratch=scratch))
    return pieces


def _parts(spec: ModelSpec, index: int) -> tuple[str, ...]:
    return tuple(table_layout(spec.tables[spec.memory[index].table]))


def _key_piece(name: str, tensors: Tensors) -> Piece:
    tensor = tensors[name]
    return Piece(name, tensor.shape, "float32", read=_bytes(tensor), scratch=key_scratch(tensor.shape))


def _rank_one_piece(side: str, tensors: Tensors) -> Piece:
    keys = tensors[f"{side}_keys"]
    heads, rank, *rest = keys.shape
    shape = (heads, *rest)
    return Piece(f"{side}_rank_one", shape, "float32", read=_bytes(keys), scratch=(rank + 1) * key_scratch(shape))


def _table_piece(spec: ModelSpec, after: ModelSpec, index: int, part: str, tensors: Tensors) -> Piece:
    layer, new = spec.memory[index], after.memory[index]
    stored = tensors[f"tables.{layer.table}.{part}"]
    table, width = after.tables[new.table], math.prod(stored.shape[1:])
    name = f"tables.{new.table}.{part}"
    gathered = table.rows * (width * itemsize(stored.dtype) + (8 if layer.shuffle else 0))
    if part == "values" and new.expanded:
        shape = (table.rows, table.value_width)
        flops = 2.0 * table.rows * width * spec.decoder.hidden_size
        scratch = expand_scratch(shape, stored.dtype, width, stored.dtype)
        return Piece(name, shape, stored.dtype, gathered=gathered, flops=flops, scratch=scratch)
    rows = (table.rows, *stored.shape[1:])
    scratch = gather_scratch(rows, stored.dtype, stored.dtype)
    return Piece(name, rows, stored.dtype, gathered=gathered, scratch=scratch)


def export_work(spec: ModelSpec, tensors: Tensors) -> StageWork:
    """Every shard is linked; new are the graph, the normalised keys, the rotary caches and experts side by side."""
    pieces = [Piece(name, tensor.shape, tensor.dtype, linked=True) for name, tensor in tensors.items()]
    pieces += [
        Piece(f"export.{name}", shape, "float32", scratch=key_scratch(shape)) for name, shape in derived_shapes(spec)
    ]
    for name, shape in stacked_experts(spec.decoder):
        dtype = tensors[f"{name.rpartition('.')[0]}.0.down_proj.weight"].dtype
        size = math.prod(shape) * itemsize(dtype)
        pieces.append(Piece(f"export.{name}", shape, dtype, read=size, scratch=experts_scratch(shape, dtype)))
    return StageWork("export", pieces, extra_disk=_GRAPH_BYTES)


def derived_shapes(spec: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """What `export --target ort` writes beside the linked shards: keys with a norm to fold, and rotary caches."""
    layout = tensor_layout(spec)
    names = [f"memory.{i}.{side}" for i, s in enumerate(spec.memory) if s.key_norm for side in ("row_keys", "col_keys")]
    shapes = [(name, layout[name].shape) for name in names]
    if spec.decoder.head_dim % 16 == 0 and spec.decoder.latent is None:
        rope = (min(spec.decoder.max_positions, ROPE_POSITIONS), spec.decoder.head_dim // 2)
        kinds = ("rope", "sliding_rope") if spec.decoder.sliding_rope else ("rope",)
        shapes += [(f"{kind}.{part}", rope) for kind in kinds for part in ("cos", "sin")]
    return shapes


def stacked_experts(decoder: DecoderSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the experts that `export --target ort` puts side by side, block by block."""
    e, d = decoder.experts, decoder.hidden_size
    if e is None:
        return []
    parts = (("gate_up", (e.count, 2 * e.width, d)), ("down", (e.count, d, e.width)))
    return [(f"model.layers.{i}.mlp.experts.{part}", shape) for i in e.layers for part, shape in parts]
