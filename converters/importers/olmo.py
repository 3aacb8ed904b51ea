"""OLMo: LayerNorm without weights, and queries, keys and values clipped to +-clip_qkv."""

from __future__ import annotations

from ultramem_deploy.spec import NormSpec

from .config_reader import Key
from .huggingface import ATTENTION_BIAS, HuggingFaceImporter

OLMO = HuggingFaceImporter(
    family="olmo",
    architecture="OlmoForCausalLM",
    config_map={"attention_bias": ATTENTION_BIAS, "clip_qkv": Key(("clip_qkv",), float, None)},
    constants={"norm": NormSpec("layer", 1e-5, affine=False)},
)
