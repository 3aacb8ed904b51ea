"""Qwen2 (and 2.5): Llama with biases on queries, keys and values alone."""

from __future__ import annotations

from .qwen import QWEN_KEYS, QwenImporter

QWEN2 = QwenImporter(
    family="qwen2", architecture="Qwen2ForCausalLM", config_map=QWEN_KEYS, constants={"qkv_bias": True}
)
