"""The rules of a model description that one field alone cannot show. Each problem is a line: where, expected, found."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .checkpoint.header import label

if TYPE_CHECKING:
    from .spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, RopeSpec, RoutingSpec, TableSpec

_TABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def model_problems(spec: ModelSpec) -> list[str]:
    """Every broken rule of `spec`; empty where it describes a model that can run."""
    problems = _decoder_problems(spec.decoder)
    for name, table in spec.tables.items():
        problems += _table_problems(name, table) + _storage_problems(name, table, spec)
    for index, layer in enumerate(spec.memory):
        problems += [f"memory.{index}.{p}" for p in _layer_problems(layer, spec)]
    used = {layer.table for layer in spec.memory}
    problems += [f"tables.{label(name)}: no memory layer uses it" for name in spec.tables if name not in used]
    writes = [layer.write_block for layer in spec.memory]
    twice = sorted({b for b in writes if writes.count(b) > 1})
    return problems + [f"memory: block {b} is written by {writes.count(b)} layers" for b in twice]


def _not_positive(values: Mapping[str, float | None], prefix: str = "") -> list[str]:
    """Names whose value is given and is not a positive, finite number."""
    return [
        f"{prefix}{name}: must be positive, found {value}"
        for name, value in values.items()
        if value is not None and not 0 < value < math.inf
    ]


# More than any model has; a description that asks for more would only keep its reader busy listing tensors.
_MAX_LAYERS = 10_000
_MAX_EXPERTS = 1 << 17


def _decoder_problems(d: DecoderSpec) -> list[str]:
    names = (
        "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size",
        "max_positions", "clip_qkv", "sliding_window", "attention_scale", "embedding_scale",
    )  # fmt: skip
    problems = _not_positive({name: getattr(d, name) for name in names}, "decoder.")
    problems += _norm_problems("decoder.norm", d.norm) + _rope_problems("decoder.rope", d.rope)
    if d.sliding_rope:
        problems += _rope_problems("decoder.sliding_rope", d.sliding_rope)
    problems += _latent_problems(d) + _experts_problems(d) + _ffn_problems(d) + _count_problems(d)
    if d.num_kv_heads > 0 and d.num_heads % d.num_kv_heads:
        problems.append(f"decoder.num_kv_heads: must divide num_heads ({d.num_heads}), found {d.num_kv_heads}")
    if d.head_dim % 2:
        problems.append(f"decoder.head_dim: rotary positions need an even size, found {d.head_dim}")
    if d.dense != "float" and (d.tie_embeddings or d.experts):
        problems.append(f"decoder.dense: {d.dense} weights need an lm_head of their own and FFNs without experts")
    if d.sliding_layers and d.sliding_window is None:
        problems.append("decoder.sliding_layers: given without sliding_window")
    outside = [i for i in d.sliding_layers if not 0 <= i < d.num_layers]
    return problems + [f"decoder.sliding_layers: layer {i} outside 0..{d.num_layers - 1}" for i in outside]


def _ffn_problems(d: DecoderSpec) -> list[str]:
    problems = [
        f"decoder.ffn_widths: must not be negative, found {width} for block {block}"
        for block, width in enumerate(d.ffn_widths)
        if width < 0
    ]
    if d.ffn_widths and len(d.ffn_widths) != d.num_layers:
        problems.append(f"decoder.ffn_widths: expected {d.num_layers} numbers or none, found {len(d.ffn_widths)}")
    if d.lm_head_bias and d.tie_embeddings:
        problems.append("decoder.lm_head_bias: tied embeddings have no output projection to add a bias to")
    return problems


def _norm_problems(where: str, norm: NormSpec | None) -> list[str]:
    if norm is None:
        return []
    problems = _not_positive({f"{where}.eps": norm.eps})
    if norm.unit_offset and (norm.kind != "rms" or norm.bias or not norm.affine):
        problems.append(f"{where}.unit_offset: goes with an RMS norm that has a weight and no bias")
    return problems


def _rope_problems(where: str, rope: RopeSpec) -> list[str]:
    used: dict[str, float] = {"theta": rope.theta}
    if rope.scaling != "none":
        used["factor"] = rope.factor
    pair = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}.get(rope.scaling)
    if pair is None:
        return _not_positive(used, f"{where}.")
    more = ("attention_factor",) if rope.scaling == "yarn" else ()
    used |= {name: getattr(rope, name) for name in (*pair, *more, "original_max_positions")}
    problems = _not_positive(used, f"{where}.")
    low, high = (getattr(rope, name) for name in pair)
    if not low < high:
        problems.append(f"{where}.{pair[1]}: must exceed {pair[0]} ({low}), found {high}")
    return problems


def _latent_problems(d: DecoderSpec) -> list[str]:
    if d.latent is None:
        return []
    names = ("kv_rank", "rope_dim", "value_dim", "norm_eps", "query_rank")
    problems = _not_positive({name: getattr(d.latent, name) for name in names}, "decoder.latent.")
    if d.latent.rope_dim % 2 or d.latent.rope_dim > d.head_dim:
        problems.append(
            f"decoder.latent.rope_dim: expected an even number up to {d.head_dim}, found {d.latent.rope_dim}"
        )
    if d.num_kv_heads != d.num_heads:
        problems.append(f"decoder.num_kv_heads: latent attention has {d.num_heads}, found {d.num_kv_heads}")
    if d.qk_norm != "none" or d.clip_qkv is not None:
        problems.append("decoder.latent: goes with neither qk_norm nor clip_qkv")
    return problems


def _count_problems(d: DecoderSpec) -> list[str]:
    experts = d.experts.count * len(d.experts.layers) if d.experts else 0
    problems = []
    if d.num_layers > _MAX_LAYERS:
        problems.append(f"decoder.num_layers: must be at most {_MAX_LAYERS}, found {d.num_layers}")
    if experts > _MAX_EXPERTS:
        problems.append(f"decoder.experts.count: at most {_MAX_EXPERTS} in all layers together, found {experts}")
    return problems


def _experts_problems(d: DecoderSpec) -> list[str]:
    e = d.experts
    if e is None:
        return []
    where = "decoder.experts"
    problems = _not_positive({name: getattr(e, name) for name in ("count", "width")}, f"{where}.")
    problems += _routing_problems(f"{where}.routing", e.routing, e.count)
    blocks = (*e.layers, *e.shared_layers)
    problems += [
        f"{where}.layers: block {i} outside 0..{d.num_layers - 1}" for i in blocks if not 0 <= i < d.num_layers
    ]
    if not blocks or len(set(blocks)) != len(blocks):
        problems.append(f"{where}.layers: expected distinct blocks, found {list(blocks)}")
    if e.shared_width < 0 or ((e.shared_gate or e.shared_layers) and not e.shared_width):
        problems.append(f"{where}.shared_width: what is shared needs a width, found {e.shared_width}")
    return problems


def _routing_problems(where: str, routing: RoutingSpec, count: int) -> list[str]:
    names = ("top_k", "scale", "groups", "top_groups")
    problems = _not_positive({name: getattr(routing, name) for name in names}, f"{where}.")
    if problems:
        return problems
    groups, kept, size = routing.groups, routing.top_groups, count // routing.groups
    if count % groups or kept > groups:
        return [f"{where}.groups: {kept} of {groups} groups of {count} experts cannot be"]
    if groups > 1 and size < 2:
        return [f"{where}.groups: a group needs 2 experts, found {size}"]
    return [f"{where}.top_k: {routing.top_k} exceeds {size * kept} experts"] if routing.top_k > size * kept else []


def _routed_layer_problems(layer: MemoryLayerSpec, routing: RoutingSpec, hidden: int) -> list[str]:
    """What a memory layer with a router may not have, and how many slots it can take."""
    expected = {
        "scoring": "additive", "heads": 1, "query_heads": 1, "cores": 1, "key_width": hidden, "query_norm": None,
        "key_norm": None, "query_bias": False, "score_function": "none", "expanded": True,
    }  # fmt: skip
    problems = [
        f"{name}: a layer with a router has {value}, found {getattr(layer, name)}"
        for name, value in expected.items()
        if getattr(layer, name) != value
    ]
    problems += _routing_problems("routing", routing, layer.row_keys)
    if layer.top_m > routing.top_k * layer.col_keys:
        slots = routing.top_k * layer.col_keys
        problems.append(f"top_m: {layer.top_m} exceeds the {slots} slots of {routing.top_k} experts")
    if layer.row_keys > layer.top_m:
        # Stage 1 would cut rows before the router's choice counts.
        problems.append(f"row_keys: a router needs at most top_m = {layer.top_m} rows, found {layer.row_keys}")
    return problems


def _table_problems(name: str, table: TableSpec) -> list[str]:
    problems = _not_positive({"rows": table.rows, "value_width": table.value_width}, f"tables.{label(name)}.")
    if table.pre_value_width < 0:
        problems.append(f"tables.{label(name)}.pre_value_width: must not be negative, found {table.pre_value_width}")
    if not _TABLE_NAME.fullmatch(name):
        problems.append(f"tables: a name is a letter and then letters, digits and _, found {name!r}")
    return problems


def _storage_problems(name: str, table: TableSpec, spec: ModelSpec) -> list[str]:
    """A quantised table's scales belong to the rows that its readers address, so these must be the same rows."""
    if table.storage == "float":
        return []
    readers = [layer for layer in spec.memory if layer.table == name]
    cores = {layer.cores if layer.expanded else 1 for layer in readers}
    problems = []
    if len(cores) > 1:
        problems.append(
            f"tables.{label(name)}.storage: {table.storage} needs readers that are all expanded alike or none"
        )
    widths = {"value_width": table.value_width // max(1, *cores), "pre_value_width": table.pre_value_width}
    odd = [what for what, width in widths.items() if table.storage == "int4" and width % 2]
    return problems + [
        f"tables.{label(name)}.{what}: int4 packs two numbers a byte, found rows of {widths[what]}" for what in odd
    ]


def _layer_problems(layer: MemoryLayerSpec, spec: ModelSpec) -> list[str]:
    names = ("heads", "top_m", "row_keys", "col_keys", "key_width", "slots", "rank", "cores", "blocks")
    problems = _not_positive({name: getattr(layer, name) for name in names})
    problems += _norm_problems("query_norm", layer.query_norm) + _norm_problems("key_norm", layer.key_norm)
    last = spec.decoder.num_layers - 1
    if not 0 <= layer.read_block <= layer.write_block <= last:
        problems.append(
            f"read_block/write_block: expected 0 <= read <= write <= {last}, "
            f"found {layer.read_block}:{layer.write_block}"
        )
    if layer.virtual_slots != layer.blocks * layer.slots:
        problems.append(
            f"slots: row_keys*col_keys = {layer.virtual_slots} must equal blocks*slots = {layer.blocks * layer.slots}"
        )
    kept = min(layer.top_m, layer.row_keys) * min(layer.top_m, layer.col_keys)
    if layer.top_m > kept:
        problems.append(f"top_m: {layer.top_m} exceeds the {kept} candidates that stage 1 keeps")
    if layer.query_heads not in (1, layer.heads):
        problems.append(f"query_heads: must be 1 or heads ({layer.heads}), found {layer.query_heads}")
    if layer.routing:
        problems += _routed_layer_problems(layer, layer.routing, spec.decoder.hidden_size)
    if layer.scoring == "additive" and layer.cores != 1:
        problems.append(f"cores: additive scoring has 1, found {layer.cores}")
    if layer.scoring == "signed":
        problems += _signed_problems(layer, spec.decoder.hidden_size)
    if layer.empty_slot is not None and not 0 <= layer.empty_slot < layer.virtual_slots:
        problems.append(f"empty_slot: expected 0 <= slot < {layer.virtual_slots}, found {layer.empty_slot}")
    if layer.rank_one_keys and (layer.scoring != "tucker" or layer.key_norm):
        problems.append("rank_one_keys: expected tucker scoring and keys whose norm is folded")
    if layer.kept_values is not None and not (0 < layer.kept_values <= layer.taken and layer.cores == 1):
        problems.append(
            f"kept_values: expected one core and 1..{layer.taken} values, found {layer.cores} and {layer.kept_values}"
        )
    if layer.output_gate_bias and not layer.output_gate:
        problems.append("output_gate_bias: given without output_gate")
    return problems + _layer_table_problems(layer, spec)


def _signed_problems(layer: MemoryLayerSpec, hidden: int) -> list[str]:
    expected = {
        "heads": 1, "query_heads": 1, "cores": 1, "blocks": 2, "key_width": hidden, "row_keys": 2 * layer.rank,
        "query_norm": None, "key_norm": None, "query_bias": False, "shuffle": False, "score_function": "none",
        "expanded": True,
    }  # fmt: skip
    problems = [
        f"{name}: signed scoring has {value}, found {getattr(layer, name)}"
        for name, value in expected.items()
        if getattr(layer, name) != value
    ]
    # A side that stage 1 cut down would lose a sign or a part of the slots whatever the scores.
    sides = {"row_keys": layer.row_keys, "col_keys": layer.col_keys}
    return problems + [
        f"{name}: signed scoring needs at most top_m = {layer.top_m} a side, found {count}"
        for name, count in sides.items()
        if count > layer.top_m
    ]


def _layer_table_problems(layer: MemoryLayerSpec, spec: ModelSpec) -> list[str]:
    table = spec.tables.get(layer.table)
    if table is None:
        return [f"table: no table named {layer.table!r}"]
    problems = []
    if layer.slots > table.rows:
        problems.append(f"slots: {layer.slots} exceed the {table.rows} rows of table {layer.table!r}")
    if not 0 <= layer.offset < max(table.rows, 1):
        problems.append(f"offset: expected 0 <= offset < {table.rows}, found {layer.offset}")
    if layer.cores > 0 and table.value_width % layer.cores:
        problems.append(f"cores: must divide the value width {table.value_width}, found {layer.cores}")
    hidden = spec.decoder.hidden_size
    return problems + _gate_problems(layer, table, hidden) + _expanded_problems(layer, table, hidden)


def _gate_problems(layer: MemoryLayerSpec, table: TableSpec, hidden: int) -> list[str]:
    if layer.gate_activation != "none" and table.pre_value_width <= 0:
        return [f"gate_activation: {layer.gate_activation} needs a table with pre-values, {layer.table!r} has none"]
    if layer.gate_activation == "swiglu" and table.pre_value_width % 2:
        return [f"gate_activation: swiglu needs an even pre-value width, found {table.pre_value_width}"]
    width = hidden * (2 if layer.gate_activation == "swiglu" else 1)
    if layer.reads_hidden and table.pre_value_width not in (0, width):
        found = table.pre_value_width
        return [f"table: pre-values that meet the hidden state have {width} columns, found {found} in {layer.table!r}"]
    return []


def _expanded_problems(layer: MemoryLayerSpec, table: TableSpec, hidden: int) -> list[str]:
    if not layer.expanded:
        return []
    problems = []
    if table.value_width != layer.cores * hidden:
        problems.append(
            f"expanded: table {layer.table!r} must have cores*hidden_size = {layer.cores * hidden} columns, "
            f"found {table.value_width}"
        )
    if layer.scoring == "signed":
        if not layer.sum_blocks or layer.output_gate or layer.output_bias:
            problems.append("sum_blocks: signed scoring sums its two blocks, with no output gate and no output bias")
    elif layer.blocks != 1 or layer.output_gate or layer.output_bias:
        problems.append("expanded: an expanded layer has one block, no output gate and no output bias")
    return problems
