"""Qwen3-MoE: Qwen3 with experts in some blocks."""

from __future__ import annotations

from typing import Any

from .config_reader import ConfigReader, Key
from .experts import EXPERTS_IGNORED, read_experts, sparse_blocks
from .huggingface import ATTENTION_BIAS
from .mistral import MistralImporter
from .qwen import QWEN_KEYS

_EXPERTS = {
    "num_experts_per_tok": Key(("top_k",)),
    "moe_intermediate_size": Key(("width",)),
    "norm_topk_prob": Key(("normalise",), bool, False),
}
_USE_WINDOW, _WINDOW = Key((), bool, False), Key((), default=None)


class Qwen3MoeImporter(MistralImporter):
    """Unlike Qwen3, every block has the window where it is used; the head size follows the hidden size if left out."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        used = reader.number("use_sliding_window", _USE_WINDOW)
        reader.raw("sliding_window")
        fields["sliding_window"] = reader.number("sliding_window", _WINDOW) if used else None
        super().quirks(reader, fields)
        # Published models say num_experts, newer files num_local_experts.
        name = "num_local_experts" if "num_local_experts" in reader.config else "num_experts"
        blocks = sparse_blocks(reader, fields["num_layers"])
        fields["experts"] = read_experts(reader, {**_EXPERTS, name: Key(("count",))}, blocks)


QWEN3_MOE = Qwen3MoeImporter(
    family="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    config_map={**QWEN_KEYS, "attention_bias": ATTENTION_BIAS},
    constants={"qk_norm": "head"},
    ignored=EXPERTS_IGNORED | {"max_window_layers"},
)
