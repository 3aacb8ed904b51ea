"""Llama and what is built like it (SmolLM2 too): pre-norm blocks, grouped queries, optional biases."""

from __future__ import annotations

from .config_reader import Key
from .huggingface import ATTENTION_BIAS, RMS_KEYS, HuggingFaceImporter

LLAMA = HuggingFaceImporter(
    family="llama",
    architecture="LlamaForCausalLM",
    config_map={**RMS_KEYS, "attention_bias": ATTENTION_BIAS, "mlp_bias": Key(("mlp_bias",), bool, False)},
)
