"""Mistral: Llama without biases; where there is a sliding window, every block has it."""

from __future__ import annotations

from typing import Any

from .config_reader import ConfigReader, Key
from .huggingface import RMS_KEYS, HuggingFaceImporter


class MistralImporter(HuggingFaceImporter):
    """Spreads the window over all blocks."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        if fields["sliding_window"] is not None:
            fields["sliding_layers"] = tuple(range(fields["num_layers"]))


MISTRAL = MistralImporter(
    family="mistral",
    architecture="MistralForCausalLM",
    config_map={
        **RMS_KEYS,
        "num_key_value_heads": Key(("num_kv_heads",)),  # left out, it would mean 8
        "sliding_window": Key(("sliding_window",), default=None),
    },
)
