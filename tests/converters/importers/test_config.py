"""Configurations: every key is used, known to be harmless, or named in one error that lists all problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ultramem_deploy.converters.importers import plan_import
from ultramem_deploy.converters.importers.config_reader import ConfigReader
from ultramem_deploy.converters.importers.llama import LLAMA
from ultramem_deploy.converters.importers.mistral import MISTRAL
from ultramem_deploy.converters.importers.qwen2 import QWEN2
from ultramem_deploy.converters.importers.qwen3 import QWEN3
from ultramem_deploy.converters.importers.tokens import read_tokens
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.spec import RopeSpec, TokenSpec

from .sources import family_config

Make = Callable[..., Path]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def problems_of(make: Make, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan_import(make(**changes))
    assert "\n" not in str(caught.value)
    return caught.value.problems


def decoder(importer: Any, **changes: Any) -> tuple[Any, list[str]]:
    reader = ConfigReader(family_config(importer.family, **changes), "config.json")
    return importer.decoder(reader), reader.problems


def test_unknown_keys_are_all_named_at_once(llama: Make) -> None:
    found = problems_of(llama, zebra=1, attention_scale=2.0)
    assert found == ["'attention_scale': unknown key (value 2.0)", "'zebra': unknown key (value 1)"]


def test_all_problems_at_once(llama: Make) -> None:
    found = problems_of(
        llama, hidden_size="32", num_hidden_layers=..., hidden_act="relu", pretraining_tp=2, rms_norm_eps=-1, zebra=0
    )
    text = " | ".join(found)
    for part in (
        "hidden_size: expected a whole",
        "num_hidden_layers: missing",
        "hidden_act",
        "pretraining_tp",
        "eps",
        "zebra",
    ):
        assert part in text
    assert len(found) == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"rope_scaling": {"type": "yarn"}, "rope_parameters": None},
            "rope_scaling.factor: expected a positive number, found None",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_parameters.factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention.*not supported"),
        (
            {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            "must exceed low_freq_factor",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5e5},
            "500000.0 contradicts rope_parameters.rope_theta",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0 or None is supported, found 0.5"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config: .*gptq"),
        ({"attention_multiplier": 0.1}, "attention_multiplier"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"hidden_act": "relu2"}, "hidden_act: expected one of silu.*found 'relu2'"),
        ({"num_key_value_heads": 3}, "num_kv_heads: must divide"),
        ({"num_attention_heads": 5}, "head_dim: missing, and hidden_size 32 is no multiple"),
        ({"head_dim": 7}, "head_dim: rotary positions need an even size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected a whole number from 1 to 10000"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id: expected a token id"),
        ({"pad_token_id": [1, 3]}, "pad_token_id: expected one id"),
    ],
)
def test_what_changes_the_mathematics_is_refused(llama: Make, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        plan_import(llama(**changes))


def test_published_smollm2_keys_are_understood(llama: Make) -> None:
    extra = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}, "pretraining_tp": 1}
    extra |= {"_model_name_or_path": "x", "unk_token_id": 0}  # what transformers saves after it has read a GGUF file
    plan = plan_import(
        llama(**extra, torch_dtype="bfloat16", rope_scaling=None, use_cache=True, initializer_range=0.04)
    )
    assert plan.warnings == []


def test_old_and_new_spellings_agree(llama: Make) -> None:
    new = plan_import(llama(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}))
    old = plan_import(
        llama(
            rope_parameters=...,
            dtype=...,
            torch_dtype="float32",
            rope_theta=500000,
            rope_scaling={"type": "llama3", **LLAMA3},
        )
    )
    assert new.spec == old.spec
    assert new.spec.decoder.rope == RopeSpec(5e5, "llama3", 8.0, 1.0, 4.0, 64)


def test_original_positions_default_to_the_maximum() -> None:
    factors = {key: value for key, value in LLAMA3.items() if not key.startswith("original")}
    found, problems = decoder(LLAMA, rope_parameters={"rope_type": "llama3", **factors})
    assert not problems
    assert (found.rope.theta, found.rope.original_max_positions) == (10000.0, 128)


def test_mistral_window_is_on_every_block() -> None:
    found, problems = decoder(MISTRAL, sliding_window=16)
    assert not problems
    assert (found.sliding_window, found.sliding_layers) == (16, (0, 1))
    found, _ = decoder(MISTRAL, sliding_window=None)
    assert (found.sliding_window, found.sliding_layers) == (None, ())


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0}, ()),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, (1,)),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 28}, ()),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ()),
        (
            {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
            (0,),
        ),
    ],
)
def test_qwen_windows(changes: dict[str, Any], layers: tuple[int, ...]) -> None:
    for importer in (QWEN2, QWEN3):
        found, problems = decoder(importer, **changes)
        assert not problems
        assert found.sliding_layers == layers
        assert found.sliding_window == (9 if layers else None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_types": ["sliding_attention"] * 2}, "names sliding blocks"),
        ({"layer_types": ["full_attention"] * 3}, "expected 2 entries"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked"),
        ({"layer_types": "full_attention"}, "expected a list"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": "1"}, "max_window_layers"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window: expected a whole number from 1"),
    ],
)
def test_qwen_window_contradictions(changes: dict[str, Any], expected: str) -> None:
    _, problems = decoder(QWEN2, **changes)
    assert any(expected in problem for problem in problems), problems


def test_qwen3_head_size_does_not_follow_the_hidden_size() -> None:
    assert decoder(QWEN3, head_dim=...)[0].head_dim == 128


def test_generation_config_has_the_last_word_on_tokens(llama: Make) -> None:
    source = llama(eos_token_id=2, pad_token_id=-1)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "temperature": 0.7}))
    plan = plan_import(source)
    assert plan.spec.tokens == TokenSpec(bos=1, eos=(2, 5), pad=None)
    assert [file.name for file in plan.companions] == ["generation_config.json"]
    assert any("pad_token_id" in warning and "outside" in warning for warning in plan.warnings)


def test_token_ids_that_repeat_are_kept_once() -> None:
    reader = ConfigReader({"eos_token_id": [4, 4, 3]}, "x")
    assert read_tokens(reader, {}, 10) == TokenSpec(eos=(4, 3))


@pytest.mark.parametrize(
    "content", ["[]", "{", "", "\ufeff{}", '"x"', '{"hidden_size": ' + "9" * 5000 + "}", "[" * 100_000]
)
def test_files_that_are_no_configuration(llama: Make, content: str) -> None:
    source = llama()
    (source / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json"):
        plan_import(source)
