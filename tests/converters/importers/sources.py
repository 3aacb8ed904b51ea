"""Tiny sources in every family's own spelling, written without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
RMS = {"rms_norm_eps": 1e-5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], **RMS},
    "mistral": {"architectures": ["MistralForCausalLM"], **RMS, "sliding_window": 8},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], **RMS},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], **RMS, "head_dim": 16},
    "olmo": {"architectures": ["OlmoForCausalLM"], "clip_qkv": 8.0},
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], **RMS},
    "gemma3_text": {"architectures": ["Gemma3ForCausalLM"], **RMS, "head_dim": 8},
    "olmoe": {"architectures": ["OlmoeForCausalLM"], **RMS, **EXPERTS},
    "mixtral": {"architectures": ["MixtralForCausalLM"], **RMS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"architectures": ["Qwen2MoeForCausalLM"], **RMS, **EXPERTS, "moe_intermediate_size": 12},
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], **RMS, **EXPERTS, "moe_intermediate_size": 12},
    "deepseek_v3": {"architectures": ["DeepseekV3ForCausalLM"], **RMS},
}


def family_config(family: str, **changes: Any) -> dict[str, Any]:
    """A valid `config.json` of the family; a change to ... removes the key."""
    config = {**BASE, "model_type": family, **CONFIGS[family], **changes}
    return {key: value for key, value in config.items() if value is not ...}


def llama_shapes(tied: bool = False) -> Shapes:
    """What transformers saves for `BASE` as Llama, spelled out rather than taken from the code under test."""
    shapes: Shapes = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    block: Shapes = {
        "self_attn.q_proj.weight": (32, 32),
        "self_attn.k_proj.weight": (16, 32),
        "self_attn.v_proj.weight": (16, 32),
        "self_attn.o_proj.weight": (32, 32),
        "mlp.gate_proj.weight": (48, 32),
        "mlp.up_proj.weight": (48, 32),
        "mlp.down_proj.weight": (32, 48),
        "input_layernorm.weight": (32,),
        "post_attention_layernorm.weight": (32,),
    }
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes if tied else shapes | {"lm_head.weight": (64, 32)}


def random_tensors(shapes: Shapes, dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return {name: generator.standard_normal(shape, dtype=np.float32).astype(kind) for name, shape in shapes.items()}


def write_source(
    directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]], shards: int = 1
) -> Path:
    """A source directory as transformers saves it: one file, or several with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
