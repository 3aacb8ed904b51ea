"""Gemma 3 (text): norms on both sides whose weights count from one, scaled embeddings, two kinds of positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.spec import NormSpec, RopeSpec

from .config_reader import ConfigReader, Key
from .huggingface import ATTENTION_BIAS, RMS_KEYS, HuggingFaceImporter
from .qwen import layer_types
from .rope_config import rope_of

_PATTERN = Key((), int, 6)
_THETAS = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}


class Gemma3Importer(HuggingFaceImporter):
    """Every block but each sixth looks through a window, with positions of its own."""

    def quirks(self, reader: ConfigReader, fields: dict[str, Any]) -> None:
        norm: NormSpec = fields["norm"]
        fields["norm"] = dataclasses.replace(norm, unit_offset=True)
        fields["embedding_scale"] = math.sqrt(fields["hidden_size"])
        fields["attention_scale"] = fields["attention_scale"] ** -0.5
        pattern = reader.number("sliding_window_pattern", _PATTERN)
        reader.raw("_sliding_window_pattern")
        named = layer_types(reader, fields["num_layers"])
        every = tuple(i for i in range(fields["num_layers"]) if (i + 1) % pattern)
        fields["sliding_layers"] = every if named is None else named
        if not fields["sliding_layers"]:
            fields["sliding_window"] = None
        fields["sliding_rope"] = self._rope(reader, "sliding_attention", fields["max_positions"])

    def rope(self, reader: ConfigReader, max_positions: int) -> RopeSpec:
        return self._rope(reader, "full_attention", max_positions)

    def _rope(self, reader: ConfigReader, kind: str, max_positions: int) -> RopeSpec:
        """Positions of one kind of block; older files have two thetas, and a scaling for full attention alone."""
        name, theta = _THETAS[kind]
        both = reader.raw("rope_parameters") or {}
        scaling = reader.raw("rope_scaling") or {}
        values = both.get(kind) or {} if isinstance(both, dict) else both
        if not values and kind == "full_attention":
            values = scaling
        if not isinstance(values, dict):
            reader.problem(f"rope_parameters.{kind}: expected an object, found {shown(values)}")
            values = {}
        beside = reader.raw(name)
        if beside is None and "rope_theta" not in values:
            beside = theta
        return rope_of(reader, f"rope_parameters.{kind}", dict(values), max_positions, beside)


GEMMA3 = Gemma3Importer(
    family="gemma3_text",
    architecture="Gemma3ForCausalLM",
    config_map={
        **RMS_KEYS,
        "attention_bias": ATTENTION_BIAS,
        "head_dim": Key(("head_dim",), default=256),
        "tie_word_embeddings": Key(("tie_embeddings",), bool, True),
        "query_pre_attn_scalar": Key(("attention_scale",), float, 256.0),
        "sliding_window": Key(("sliding_window",), default=4096),
    },
    constants={"norm_position": "both", "qk_norm": "head"},
    fixed={"use_bidirectional_attention": (False, None)},
    ignored=frozenset({"cache_implementation"}),
    activation_key="hidden_activation",
)
