"""OLMo 2: norms after attention and FFN, queries and keys normalised over the whole projection."""

from __future__ import annotations

from .huggingface import ATTENTION_BIAS, RMS_KEYS, HuggingFaceImporter

OLMO2 = HuggingFaceImporter(
    family="olmo2",
    architecture="Olmo2ForCausalLM",
    config_map={**RMS_KEYS, "attention_bias": ATTENTION_BIAS},
    constants={"norm_position": "post", "qk_norm": "projection"},
)
