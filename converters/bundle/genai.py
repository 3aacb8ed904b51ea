"""What ONNX Runtime GenAI needs beside the graph: genai_config.json, and a tokenizer class that it knows."""

from __future__ import annotations

from typing import Any

from ...spec import ModelSpec

CONFIG = "genai_config.json"
MODEL_TYPE = "decoder"  # GenAI's name for a plain causal decoder; it refuses types that it does not know
# transformers 5 writes TokenizersBackend for every tokenizer.json; GenAI and onnxruntime-extensions know the old name.
_CLASS = "PreTrainedTokenizerFast"
_UNKNOWN_CLASSES = (None, "TokenizersBackend")


def genai_config(spec: ModelSpec, *, packed: bool, plugin: str | None) -> dict[str, Any]:
    """genai_config.json; `packed`: GroupQueryAttention's cache in place; `plugin`: the library in the bundle, if any.

    GenAI takes token 0 for the end of text where the model names none.
    """
    decoder, tokens = spec.decoder, spec.tokens
    options: dict[str, Any] = {"provider_options": []}
    if plugin:
        options["custom_ops_library"] = plugin
    eos = list(tokens.eos)
    found: dict[str, Any] = {
        "bos_token_id": tokens.bos,
        "eos_token_id": eos if len(eos) > 1 else eos[0] if eos else None,
        "pad_token_id": tokens.pad if tokens.pad is not None else eos[0] if eos else 0,
    }
    return {
        "model": {
            "type": MODEL_TYPE,
            **{key: value for key, value in found.items() if value is not None},
            "context_length": decoder.max_positions,
            "vocab_size": decoder.vocab_size,
            "decoder": {
                "filename": "model.onnx",
                "session_options": options,
                "head_size": decoder.head_dim,
                "hidden_size": decoder.hidden_size,
                "num_attention_heads": decoder.num_heads,
                "num_key_value_heads": decoder.num_kv_heads,
                "num_hidden_layers": decoder.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.max_positions,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": packed,
        },
    }


def tokenizer_config(given: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with a class name that runtimes other than transformers know too."""
    return given | {"tokenizer_class": _CLASS} if given.get("tokenizer_class") in _UNKNOWN_CLASSES else given
