"""The `model:` section of the official config.yaml, with the official defaults; what it cannot mean is a problem."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.official.model import KINDS, Official
from ultramem_deploy.official.placement import FULL, NO_MEMORY, Placement, parse_paths

from ..config_reader import ConfigReader, Key
from ..huggingface import MAX_LAYERS

NORM_KINDS = {"rms": "rms", "default": "layer", "low_precision": "layer"}

KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "d_model": Key(("hidden",), default=768),
        "n_layers": Key(("layers",), default=12, maximum=MAX_LAYERS),
        "n_heads": Key(("heads",), default=12),
        "mlp_ratio": Key(("mlp_ratio",), default=4),
        "mlp_hidden_size": Key(("mlp_hidden",), default=None),
        "clip_qkv": Key(("clip_qkv",), float, None),
        "rope_theta": Key(("rope_theta",), float, 10_000),
        "attention_layer_norm": Key(("qk_norm",), bool, False),
        "layer_norm_with_affine": Key(("affine",), bool, True),
        "layer_norm_eps": Key(("eps",), float, 1e-5),
        "attention_layer_norm_with_affine": Key(("qk_affine",), bool, True),
        "max_sequence_length": Key(("positions",), default=1024),
        "include_bias": Key(("bias",), bool, True),
        "vocab_size": Key(("vocab",), default=50257),
        "weight_tying": Key(("tied",), bool, True),
        "norm_after": Key(("norm_after",), bool, False),
        "mem_knum": Key(("knum",), default=128),
        "mem_kdim": Key(("kdim",), default=512),
        "mem_vdim": Key(("vdim",), default=512),
        "mem_knn": Key(("knn",), default=16),
        "mem_head": Key(("mem_heads",), default=1),
        "mem_value_expand_time": Key(("value_expand",), default=1),
        "mem_key_expand_time": Key(("key_expand",), default=1),
        "mem_share_ratio": Key(("share_ratio",), float, 1.0),
        "mem_q_for_each_tucker_rank": Key(("query_a_rank",), bool, False),
        "mem_use_glu_act": Key(("glu_act",), bool, False),
        "vertical_parallel": Key(("vertical",), bool, False),
        "mem_parallel_size": Key(("group",), default=1),
    }
)
"""Keys that the official ModelConfig has -> fields of `Official`; keys that need more are read one by one."""

FIXED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "activation_type": ("swiglu",),
        "block_type": ("sequential",),
        "block_group_size": (1,),
        "alibi": (False,),
        "embedding_layer_norm": (False,),
        "moe_interleave": (False,),
        "scale_logits": (False,),
    }
)
"""Keys that change the mathematics, with the values with which memory layers run or our decoder can express."""

_UNUSED = """
    alibi_bias_max attention_dropout convert2fp32 emb_init_std embedding_dropout flash_attention init_cutoff_factor
    init_device init_fn init_std mem_final_top_expand_time mem_key_balance_reg_coef mem_log_interval
    mem_output_dropout_rate mem_tucker_rank_penalty moe_capacity_factor moe_dropless moe_lbl_in_fp32
    moe_log_expert_assignment moe_loss_weight moe_mlp_impl moe_num_experts moe_shared_expert moe_top_k
    moe_zloss_weight precision residual_dropout rope_full_precision scale_emb_init
"""
IGNORED = frozenset(_UNUSED.split())
"""Keys of initialisation, training, precision, or of block types that `FIXED` excludes."""


def model_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.yaml that describes the model: `model:`, or everything."""
    section = config.get("model")
    return section if isinstance(section, dict) else config


def read_official(reader: ConfigReader) -> Official:
    """The configuration with the official defaults; every problem goes to the reader."""
    fields = reader.fields(KEYS)
    reader.fixed(FIXED)
    if reader.raw("rope", False) is not True:
        reader.problem(f"rope: only true is supported, found {shown(reader.raw('rope', False))} (the default is false)")
    fields["kind"] = _choice(reader, "mem_type", KINDS, "ultramem_v2")
    fields["norm_kind"] = NORM_KINDS[_choice(reader, "layer_norm_type", tuple(NORM_KINDS), "default")]
    fields["kv_heads"] = _kv_heads(reader, fields["heads"])
    fields["embeddings"] = _embeddings(reader, fields["vocab"])
    fields["mlp_width"] = _mlp_width(reader, fields)
    fields["norm_bias"] = _norm_bias(reader, fields["bias"])
    fields["pre_vdim"] = _from_zero(reader, "mem_pre_vdim", 512)
    fields["placements"] = _placements(reader, fields["layers"])
    if fields["hidden"] % fields["heads"] and not reader.failed & {"d_model", "n_heads"}:
        reader.problem(f"n_heads: must divide d_model ({fields['hidden']}), found {fields['heads']}")
    return Official(**fields)


def _choice(reader: ConfigReader, key: str, values: tuple[str, ...], default: str) -> str:
    found = reader.raw(key, default)
    if isinstance(found, str) and found in values:
        return found
    reader.failed.add(key)
    reader.problem(f"{key}: expected one of {', '.join(values)}, found {shown(found)}")
    return values[0]


def _kv_heads(reader: ConfigReader, heads: int) -> int:
    """`effective_n_kv_heads` of the official code."""
    given = reader.number("n_kv_heads", Key((), default=None))
    single = reader.number("multi_query_attention", Key((), bool, None))
    if single is None:
        return given or heads
    expected = 1 if single else heads
    if given not in (None, expected):
        reader.problem(f"multi_query_attention: {single} asks for n_kv_heads {expected}, found {given}")
    return expected


def _embeddings(reader: ConfigReader, vocab: int) -> int:
    given = reader.number("embedding_size", Key((), default=None)) if "embedding_size" in reader.config else 50304
    rows = given or vocab
    if rows < vocab:
        reader.problem(f"embedding_size: must be at least vocab_size ({vocab}), found {rows}")
    return int(rows)


def _mlp_width(reader: ConfigReader, fields: dict[str, Any]) -> int:
    """Outputs of ff_proj: both halves of SwiGLU."""
    ratio, width = fields.pop("mlp_ratio"), fields.pop("mlp_hidden")
    width = width or ratio * fields["hidden"]
    if width % 2 and not reader.failed & {"mlp_ratio", "mlp_hidden_size", "d_model"}:
        reader.problem(f"mlp_hidden_size: SwiGLU needs an even width, found {width}")
    return int(width)


def _norm_bias(reader: ConfigReader, include_bias: bool) -> bool:
    own = reader.number("bias_for_layer_norm", Key((), bool, None))
    return include_bias if own is None else bool(own)


def _from_zero(reader: ConfigReader, key: str, default: int) -> int:
    value = reader.raw(key, default)
    if type(value) is int and 0 <= value <= 2**31 - 1:
        return value
    reader.failed.add(key)
    reader.problem(f"{key}: expected a whole number from 0, found {shown(value)}")
    return 0


def _placements(reader: ConfigReader, layers: int) -> tuple[Placement, ...]:
    way = reader.raw("mem_insert_way", FULL)
    if way == NO_MEMORY:
        return ()
    if not isinstance(way, str):
        reader.problem(f"mem_insert_way: expected {FULL}, {NO_MEMORY} or read:write/read:write/…, found {shown(way)}")
        return ()
    try:
        return parse_paths(way, layers)
    except ValueError as error:
        reader.problem(f"mem_insert_way: {error}")
        return ()
