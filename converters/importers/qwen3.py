"""Qwen3: queries and keys are normalised a head; the head size is a key of its own."""

from __future__ import annotations

from .config_reader import Key
from .huggingface import ATTENTION_BIAS
from .qwen import QWEN_KEYS, QwenImporter

QWEN3 = QwenImporter(
    family="qwen3",
    architecture="Qwen3ForCausalLM",
    # Left out, the head size is 128 whatever hidden_size is.
    config_map={**QWEN_KEYS, "attention_bias": ATTENTION_BIAS, "head_dim": Key(("head_dim",), default=128)},
    constants={"qk_norm": "head"},
)
