"""Whatever is in config.json, the answer is a plan or one line for the user."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultramem_deploy.converters.importers import plan_import
from ultramem_deploy.errors import InputError
from ultramem_deploy.spec import ModelSpec

from .sources import BASE, family_config, llama_shapes, random_tensors, write_source

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([10**400, "", "silu", "default", "llama3", "yarn", "\ud800", "LlamaForCausalLM", "llama", "qwen3"]),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
ROPE_KEYS = ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "x"]
ROPES = st.dictionaries(st.sampled_from([*ROPE_KEYS, "original_max_position_embeddings"]), VALUES, max_size=6)
KEYS = sorted({*BASE, "rms_norm_eps", "head_dim", "rope_theta", "rope_scaling", "attention_bias", "sliding_window"})
KEYS += [
    "model_type",
    "architectures",
    "layer_types",
    "use_sliding_window",
    "max_window_layers",
    "pretraining_tp",
    "zebra",
]
MUTATIONS = st.dictionaries(st.sampled_from(KEYS), VALUES | st.just(...), max_size=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("fuzz"), family_config("llama"), random_tensors(llama_shapes()))


def answer(source: Path, config: dict[str, Any], family: str | None = None) -> None:
    (source / "config.json").write_text(json.dumps(config))
    try:
        plan = plan_import(source, family)
    except InputError as error:
        message = str(error)
        message.encode("utf-8")
        assert message and "\n" not in message
    else:
        assert ModelSpec.from_config(plan.spec.to_config()) == plan.spec


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=MUTATIONS,
    rope=st.none() | ROPES,
    family=st.sampled_from([None, "llama", "mistral", "qwen2", "qwen3", "olmo"]),
)
def test_mutated_configurations(source: Path, changes: dict[str, Any], rope: Any, family: str | None) -> None:
    config = copy.deepcopy(family_config("llama", **changes))
    if rope is not None:
        config["rope_parameters"] = rope
    answer(source, config, family)


@settings(max_examples=100, deadline=None)
@given(config=st.dictionaries(st.text(max_size=8) | st.sampled_from(KEYS), VALUES, max_size=6))
def test_arbitrary_objects(source: Path, config: dict[str, Any]) -> None:
    answer(source, config)


@settings(max_examples=60, deadline=None)
@given(generation=VALUES)
def test_arbitrary_generation_configs(source: Path, generation: Any) -> None:
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": generation, "pad_token_id": generation}))
    try:
        answer(source, family_config("llama"))
    finally:
        (source / "generation_config.json").unlink()
