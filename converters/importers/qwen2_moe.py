"""Qwen2-MoE: Qwen2 with experts in some blocks and a shared FFN behind a sigmoid gate."""

from __future__ import annotations

from typing import Any

from .config_reader import ConfigReader, Key
from .experts import EXPERTS_IGNORED, read_experts, sparse_blocks
from .qwen import QWEN_KEYS, QwenImporter

_EXPERTS = {
    "num_experts": Key(("count",)),
    "num_experts_per_tok": Key(("top_k",)),
    "moe_intermediate_size": Key(("width",)),
    "shared_expert_intermediate_size": Key(("shared_width",)),
    "norm_topk_prob": Key(("normalise",), bool, False),
}


class Qwen2MoeImporter(QwenImporter):
    """Windows as in Qwen2."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        super().quirks(reader, fields)
        blocks = sparse_blocks(reader, fields["num_layers"])
        fields["experts"] = read_experts(reader, _EXPERTS, blocks, shared_gate=True)


QWEN2_MOE = Qwen2MoeImporter(
    family="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    config_map={**QWEN_KEYS, "qkv_bias": Key(("qkv_bias",), bool, True)},
    ignored=EXPERTS_IGNORED,
)
