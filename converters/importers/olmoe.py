"""OLMoE: experts in every block, queries and keys normalised over the whole projection, then clipped."""

from __future__ import annotations

from typing import Any

from .config_reader import ConfigReader, Key
from .experts import EXPERTS_IGNORED, read_experts
from .huggingface import ATTENTION_BIAS, RMS_KEYS, HuggingFaceImporter

_EXPERTS = {
    "num_experts": Key(("count",)),
    "num_experts_per_tok": Key(("top_k",)),
    "norm_topk_prob": Key(("normalise",), bool, False),
}


class OlmoeImporter(HuggingFaceImporter):
    """`intermediate_size` is an expert's width."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        blocks = tuple(range(fields["num_layers"]))
        fields["experts"] = read_experts(reader, _EXPERTS, blocks, width=fields["intermediate_size"])


OLMOE = OlmoeImporter(
    family="olmoe",
    architecture="OlmoeForCausalLM",
    config_map={**RMS_KEYS, "attention_bias": ATTENTION_BIAS, "clip_qkv": Key(("clip_qkv",), float, None)},
    constants={"qk_norm": "projection"},
    ignored=EXPERTS_IGNORED,
)
