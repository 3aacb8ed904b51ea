"""Mixtral: Mistral with experts in every block; the weights of those kept sum to 1."""

from __future__ import annotations

from typing import Any

from .config_reader import ConfigReader, Key
from .experts import EXPERTS_IGNORED, read_experts
from .huggingface import RMS_KEYS
from .matching import NameMap
from .mistral import MistralImporter

_EXPERTS = {"num_local_experts": Key(("count",)), "num_experts_per_tok": Key(("top_k",))}
_BLOCK, _EXPERT = "model.layers.{i}", "experts.{e}"


class MixtralImporter(MistralImporter):
    """`intermediate_size` is an expert's width."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        super().quirks(reader, fields)
        blocks = tuple(range(fields["num_layers"]))
        width = fields["intermediate_size"]
        fields["experts"] = read_experts(reader, _EXPERTS, blocks, width=width, normalise=True)


MIXTRAL = MixtralImporter(
    family="mixtral",
    architecture="MixtralForCausalLM",
    config_map={
        **RMS_KEYS,
        "num_key_value_heads": Key(("num_kv_heads",)),  # left out, it would mean 8
        "sliding_window": Key(("sliding_window",), default=None),
    },
    ignored=EXPERTS_IGNORED,
    names=NameMap(
        [
            (f"{_BLOCK}.mlp.gate.weight", f"{_BLOCK}.block_sparse_moe.gate.weight"),
            *(
                (f"{_BLOCK}.mlp.{_EXPERT}.{ours}_proj.weight", f"{_BLOCK}.block_sparse_moe.{_EXPERT}.{theirs}.weight")
                for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
            ),
        ]
    ),
)
