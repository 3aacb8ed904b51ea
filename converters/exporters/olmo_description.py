"""Which model of the official code a canonical description is, and the config.yaml that says so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from ultramem_deploy.errors import ConfigError
from ultramem_deploy.official.description import decoder_spec, memory_spec, table_name
from ultramem_deploy.official.model import CORES, KINDS, Official
from ultramem_deploy.official.placement import FULL, NO_MEMORY, Placement, parse_paths
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, NormSpec

_NORM_TYPES = {"rms": "rms", "layer": "default"}


def official_model(spec: ModelSpec, where: str) -> Official:
    """The official model that computes what `spec` computes. ConfigError with everything that the layout cannot say."""
    folded = [
        f"memory.{i}: folded, its table no longer has the trained values" for i, m in _enumerated(spec) if m.folded
    ]
    if folded:
        raise ConfigError(where, [f"{one}; convert the checkpoint from before `fold`" for one in folded])
    foreign = sorted({layer.kind for layer in spec.memory} - set(KINDS))
    if foreign or len({layer.kind for layer in spec.memory}) > 1:
        found = ", ".join(sorted({layer.kind for layer in spec.memory}))
        raise ConfigError(where, [f"memory: expected layers of one of {', '.join(KINDS)}, found {found}"])
    try:
        model = _candidate(spec)
    except ValueError as error:
        raise ConfigError(where, [f"memory: {error}"]) from None
    lost = [
        f"memory.{place.index}: the official code would lose it: {place.lost}"
        for place in model.placements
        if place.lost
    ]
    if lost:
        raise ConfigError(where, lost)
    ours = decoder_spec(model)
    # A missing bias of the output projection is written as zeros.
    theirs = replace(spec.decoder, lm_head_bias=ours.lm_head_bias or spec.decoder.lm_head_bias)
    problems = list(_differences("decoder", asdict(ours), asdict(theirs)))
    layers, tables = memory_spec(model)
    names = {layer.table: table_name(model, i) for i, layer in _enumerated(spec)}
    if len(set(names.values())) != len(names):
        problems.append(f"tables: {model.kind} layers share one table, found {', '.join(sorted(names))}")
    for i, layer in _enumerated(spec):
        problems += _differences(f"memory.{i}", asdict(layers[i]), asdict(replace(layer, table=names[layer.table])))
    for name, table in spec.tables.items():
        problems += _differences(f"tables.{name}", asdict(tables[names[name]]), asdict(table))
    problems += [
        f"tables: rows of {width} numbers, of which {model.group} ranks of vertical parallel cannot hold equal parts"
        for width in (model.vdim, model.pre_vdim)
        if width % model.group
    ]
    if problems:
        raise ConfigError(where, [f"{one}; the layout of olmo-ultramem cannot say that" for one in problems])
    return model


def _enumerated(spec: ModelSpec) -> Iterable[tuple[int, MemoryLayerSpec]]:
    return enumerate(spec.memory)


def _differences(where: str, ours: dict[str, Any], found: dict[str, Any]) -> Iterable[str]:
    for name, expected in ours.items():
        if isinstance(expected, dict) and isinstance(found[name], dict):
            yield from _differences(f"{where}.{name}", expected, found[name])
        elif expected != found[name]:
            yield f"{where}.{name}: expected {expected}, found {found[name]}"


def _candidate(spec: ModelSpec) -> Official:
    """The only official model that `spec` could be; whether it is shows when the two descriptions are compared."""
    d, first = spec.decoder, spec.memory[0] if spec.memory else None
    norm = (first.query_norm if first else None) or d.norm
    decoder: dict[str, Any] = {
        "kind": first.kind if first else KINDS[0],
        "hidden": d.hidden_size,
        "layers": d.num_layers,
        "heads": d.num_heads,
        "kv_heads": d.num_kv_heads,
        "mlp_width": 2 * d.intermediate_size,
        "clip_qkv": d.clip_qkv,
        "rope_theta": d.rope.theta,
        "positions": d.max_positions,
        "vocab": d.vocab_size,
        "embeddings": d.vocab_size,
        "tied": d.tie_embeddings,
        "bias": d.qkv_bias,
        "norm_after": d.norm_position == "post",
        "norm_kind": d.norm.kind,
        "eps": d.norm.eps,
        "affine": d.norm.affine,
        "qk_norm": d.qk_norm != "none",
        "qk_affine": norm.affine,
        "norm_bias": _has_bias(d.norm, norm),
    }
    return Official(**decoder, **(_memory_fields(spec, first) if first else {}))


def _has_bias(*norms: NormSpec) -> bool:
    return any(norm.bias for norm in norms if norm.affine)


def _memory_fields(spec: ModelSpec, first: MemoryLayerSpec) -> dict[str, Any]:
    table = spec.tables[first.table]
    v2 = first.kind == "ultramem_v2"
    count = len(spec.memory)
    window = math.isqrt(first.slots)
    return {
        "knum": math.isqrt(table.rows // count) if v2 else window,
        "kdim": first.key_width,
        "vdim": table.value_width,
        "pre_vdim": table.pre_value_width,
        "knn": first.top_m,
        "mem_heads": first.heads,
        "key_expand": max(1, first.row_keys // max(1, window)) if v2 else 1,
        "value_expand": first.output_blocks if v2 else 1,
        "share_ratio": _share_ratio(window, table.rows) if v2 else 1.0,
        "query_a_rank": v2,
        "glu_act": first.gate_activation == "gelu",
        "placements": _placements(spec),
        # Only vertical parallel takes a value for padding, and CORES ranks are the fewest that it runs on.
        **({"vertical": True, "group": CORES} if v2 and first.empty_slot is not None else {}),
    }


def _share_ratio(window: int, rows: int) -> float:
    """A ratio that the official code turns back into `window`: int((rows * ratio) ** 0.5)."""
    return 1.0 if int(float(rows) ** 0.5) == window else (window**2 + 0.5) / rows


def _placements(spec: ModelSpec) -> tuple[Placement, ...]:
    return parse_paths(insert_way(spec), spec.decoder.num_layers)


def insert_way(spec: ModelSpec) -> str:
    """`mem_insert_way`: "full" where every block has its own layer, else the paths."""
    paths = [(layer.read_block, layer.write_block) for layer in spec.memory]
    if not paths:
        return NO_MEMORY
    if paths == [(block, block) for block in range(spec.decoder.num_layers)]:
        return FULL
    return "/".join(f"{read}:{write}" for read, write in paths)


def official_config(spec: ModelSpec, model: Official) -> dict[str, Any]:
    """The `model:` section: every key that the importer reads, and those that training asks for."""
    config: dict[str, Any] = {
        "activation_type": "swiglu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": model.qk_norm,
        "attention_layer_norm_with_affine": model.qk_affine,
        "bias_for_layer_norm": model.norm_bias,
        "block_group_size": 1,
        "block_type": "sequential",
        "clip_qkv": model.clip_qkv,
        "d_model": model.hidden,
        "embedding_dropout": 0.0,
        "embedding_layer_norm": False,
        "embedding_size": model.embeddings,
        "include_bias": model.bias,
        "layer_norm_eps": model.eps,
        "layer_norm_type": _NORM_TYPES[model.norm_kind],
        "layer_norm_with_affine": model.affine,
        "max_sequence_length": model.positions,
        "mlp_hidden_size": model.mlp_width,
        "n_heads": model.heads,
        "n_kv_heads": model.kv_heads,
        "n_layers": model.layers,
        "norm_after": model.norm_after,
        "residual_dropout": 0.0,
        "rope": True,
        # An integer in the official configuration.
        "rope_theta": int(model.rope_theta) if model.rope_theta.is_integer() else model.rope_theta,
        "scale_logits": False,
        "vocab_size": model.vocab,
        "weight_tying": model.tied,
    }
    return config | _memory_config(spec, model) | _token_config(spec)


def _memory_config(spec: ModelSpec, model: Official) -> dict[str, Any]:
    return {
        "mem_head": model.mem_heads,
        "mem_insert_way": insert_way(spec),
        "mem_kdim": model.kdim,
        "mem_key_expand_time": model.key_expand,
        "mem_knn": model.knn,
        "mem_knum": model.knum,
        "mem_parallel_size": model.group,
        "mem_pre_vdim": model.pre_vdim,
        "mem_q_for_each_tucker_rank": model.query_a_rank,
        "mem_share_ratio": model.share_ratio,
        "mem_type": model.kind,
        "mem_use_glu_act": model.glu_act,
        "mem_value_expand_time": model.value_expand,
        "mem_vdim": model.vdim,
        "vertical_parallel": model.vertical,
    }


def _token_config(spec: ModelSpec) -> dict[str, Any]:
    ids = {"eos_token_id": spec.tokens.eos[0] if spec.tokens.eos else None, "pad_token_id": spec.tokens.pad}
    return {name: value for name, value in ids.items() if value is not None}
