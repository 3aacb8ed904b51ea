"""The model description: round trips, and every problem reported at once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import builders as b
from tests.model.test_memory import KINDS
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.spec import ModelSpec, RopeSpec

DENSE = {
    "plain": b.DECODER,
    "windows": b.decoder(sliding_window=4, sliding_layers=(0, 1)),
    "widths": b.decoder(ffn_widths=(0, 7), lm_head_bias=True),
    "llama3": b.decoder(rope=RopeSpec(5e5, "llama3", 8.0, 1.0, 4.0, 8192)),
}


@pytest.mark.parametrize("spec", [*KINDS.values(), *(ModelSpec(d) for d in DENSE.values())], ids=[*KINDS, *DENSE])
def test_round_trip(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(spec.to_config()))
    assert ModelSpec.load(tmp_path) == spec


def config(**changes: Any) -> dict[str, Any]:
    """The V2 description with values changed: keys are dotted paths, as in the messages."""
    result = copy.deepcopy(b.V2.to_config())
    for path, value in changes.items():
        *parents, last = path.split("__")
        target: Any = result
        for name in parents:
            target = target[int(name) if name.isdigit() else name]
        target[last] = value
    return result


def problems(given_config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ModelSpec.from_config(given_config, "here")
    assert str(caught.value).startswith(f"here: {len(caught.value.problems)} problem")
    return caught.value.problems


BROKEN = {
    "model_type": "llama",
    "format_version": 2,
    "surprise": 1,
    "decoder__hidden_size": "32",
    "decoder__num_layers": 2.5,
    "decoder__tie_embeddings": 1,
    "decoder__norm__kind": "batch",
    "decoder__rope__base": 10.0,
    "memory__0__kind": "ultramem_v3",
    "memory__1__heads": True,
    "memory__1__shufle": False,
    "tables__t__rows": None,
    "tokens__eos": "two",
}


def test_every_wrong_type_is_reported_at_once() -> None:
    found = problems(config(**BROKEN))
    for path in BROKEN:
        where = path.replace("__", ".")
        assert sum(line.startswith(f"{where}:") for line in found) == 1, (where, found)
    assert len(found) == len(BROKEN)


def test_later_fields_have_defaults() -> None:
    """A description from before they existed reads as it did."""
    old = config()
    later = {"decoder": _LATER_DECODER, "memory": _LATER}
    for layer in old["memory"]:
        for name in later["memory"]:
            del layer[name]
    for name in later["decoder"]:
        del old["decoder"][name]
    assert ModelSpec.from_config(old) == b.V2


def test_ffn_widths() -> None:
    found = problems(config(decoder__ffn_widths=[-1, 3], decoder__lm_head_bias=True, decoder__tie_embeddings=True))
    assert "decoder.ffn_widths: must not be negative, found -1 for block 0" in found
    assert "decoder.lm_head_bias: tied embeddings have no output projection to add a bias to" in found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": []}, "layers: expected distinct blocks, found []"),
        ({"layers": [1, 1]}, "layers: expected distinct blocks, found [1, 1]"),
        ({"routing": {"top_k": 9}}, "routing.top_k: 9 exceeds 8 experts"),
        ({"routing": {"top_k": 3, "groups": 4}}, "routing.top_k: 3 exceeds 2 experts"),
        ({"routing": {"top_k": 1, "groups": 3}}, "routing.groups: 1 of 3 groups of 8 experts cannot be"),
        (
            {"routing": {"top_k": 1, "groups": 2, "top_groups": 3}},
            "routing.groups: 3 of 2 groups of 8 experts cannot be",
        ),
        ({"routing": {"top_k": 1, "groups": 8}}, "routing.groups: a group needs 2 experts, found 1"),
        ({"routing": {"top_k": 1, "scale": 0.0}}, "routing.scale: must be positive, found 0.0"),
        ({"width": 0}, "width: must be positive, found 0"),
        ({"shared_gate": True}, "shared_width: what is shared needs a width, found 0"),
        ({"shared_layers": [1]}, "shared_width: what is shared needs a width, found 0"),
    ],
)
def test_mixtures_of_experts(changes: dict[str, Any], expected: str) -> None:
    assert problems(config(decoder__experts=EXPERTS | changes)) == [f"decoder.experts.{expected}"]


def test_yarn_needs_its_range() -> None:
    found = problems(config(decoder__rope={"theta": 1e4, "scaling": "yarn", "beta_slow": 40.0}))
    assert "decoder.rope.original_max_positions: must be positive, found 0" in found
    assert "decoder.rope.beta_fast: must exceed beta_slow (40.0), found 32.0" in found


@pytest.mark.parametrize("key", ["surprise", "decoder__rope__base", "memory__1__shufle"])
def test_unknown_keys(key: str) -> None:
    assert problems(config(**{key: 1})) == [f"{key.replace('__', '.')}: unknown key"]


_LATER_DECODER = [
    "ffn_widths", "lm_head_bias", "sliding_rope", "attention_scale", "embedding_scale", "latent", "experts",
]  # fmt: skip
_LATER = ["empty_slot", "query_bias", "output_bias", "output_gate_bias", "token_gate", "rank_one_keys"]
LATENT = {"kv_rank": 8, "rope_dim": 6, "value_dim": 10, "norm_eps": 1e-6}
EXPERTS = {"layers": [0], "count": 8, "width": 12, "routing": {"top_k": 2}}
SPARE = {"rows": 1, "value_width": 1}
RULES: dict[str, tuple[Any, str]] = {
    "decoder__hidden_size": (0, "decoder.hidden_size: must be positive, found 0"),
    "decoder__num_layers": (10**9, "decoder.num_layers: must be at most 10000, found 1000000000"),
    "decoder__num_kv_heads": (3, "decoder.num_kv_heads: must divide num_heads (4), found 3"),
    "decoder__head_dim": (15, "decoder.head_dim: rotary positions need an even size, found 15"),
    "decoder__ffn_widths": ([48], "decoder.ffn_widths: expected 2 numbers or none, found 1"),
    "decoder__latent": (
        LATENT | {"rope_dim": 20},
        "decoder.latent.rope_dim: expected an even number up to 16, found 20",
    ),
    "decoder__experts": (EXPERTS | {"layers": [2]}, "decoder.experts.layers: block 2 outside 0..1"),
    "decoder__attention_scale": (0.0, "decoder.attention_scale: must be positive, found 0.0"),
    "decoder__clip_qkv": (-1.0, "decoder.clip_qkv: must be positive, found -1.0"),
    "decoder__sliding_layers": ([0], "decoder.sliding_layers: given without sliding_window"),
    "decoder__norm__eps": (float("nan"), "decoder.norm.eps: must be positive, found nan"),
    "decoder__rope__theta": (float("inf"), "decoder.rope.theta: must be positive, found inf"),
    "memory__0__read_block": (1, "memory.0.read_block/write_block: expected 0 <= read <= write <= 1, found 1:0"),
    "memory__0__top_m": (0, "memory.0.top_m: must be positive, found 0"),
    "memory__0__slots": (35, "memory.0.slots: row_keys*col_keys = 144 must equal blocks*slots = 140"),
    "memory__0__query_heads": (3, "memory.0.query_heads: must be 1 or heads (2), found 3"),
    "memory__0__key_norm__eps": (0.0, "memory.0.key_norm.eps: must be positive, found 0.0"),
    "memory__0__scoring": ("additive", "memory.0.cores: additive scoring has 1, found 2"),
    "memory__0__empty_slot": (144, "memory.0.empty_slot: expected 0 <= slot < 144, found 144"),
    "memory__0__rank_one_keys": (
        True,
        "memory.0.rank_one_keys: expected tucker scoring and keys whose norm is folded",
    ),
    "memory__0__output_gate_bias": (True, "memory.0.output_gate_bias: given without output_gate"),
    "memory__0__cores": (3, "memory.0.cores: must divide the value width 16, found 3"),
    "memory__0__offset": (60, "memory.0.offset: expected 0 <= offset < 60, found 60"),
    "memory__0__table": ("u", "memory.0.table: no table named 'u'"),
    "memory__0__write_block": (1, "memory: block 1 is written by 2 layers"),
    "tables__t__pre_value_width": (-1, "tables.t.pre_value_width: must not be negative, found -1"),
    "tables__spare": (SPARE, "tables.spare: no memory layer uses it"),
    "tables__a.b": (SPARE, "tables: a name is a letter and then letters, digits and _, found 'a.b'"),
}


@pytest.mark.parametrize("path", RULES)
def test_rules(path: str) -> None:
    value, message = RULES[path]
    assert message in problems(config(**{path: value}))


def test_rules_of_several_fields_are_reported_at_once() -> None:
    chosen = ("decoder__num_kv_heads", "decoder__head_dim", "memory__0__slots", "memory__0__offset", "tables__spare")
    found = problems(config(**{path: RULES[path][0] for path in chosen}))
    assert set(found) >= {RULES[path][1] for path in chosen}


GATES = {
    "no pre-values": (0, "gelu", "memory.0.gate_activation: gelu needs a table with pre-values, 't' has none"),
    "odd": (7, "swiglu", "memory.0.gate_activation: swiglu needs an even pre-value width, found 7"),
}


@pytest.mark.parametrize(("width", "activation", "message"), GATES.values(), ids=GATES)
def test_gates(width: int, activation: str, message: str) -> None:
    changes: dict[str, Any] = {"tables__t__pre_value_width": width, "memory__0__gate_activation": activation}
    assert message in problems(config(**changes))


def test_expanded_layers() -> None:
    found = problems(config(memory__0__expanded=True))
    said = "memory.0.expanded: an expanded layer has one block, no output gate and no output bias"
    assert said in found
    assert "memory.0.expanded: table 't' must have cores*hidden_size = 64 columns, found 16" in found


def test_llama3_frequencies_in_order() -> None:
    rope = {"theta": 1e4, "scaling": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
    found = problems(config(decoder__rope=rope))
    assert "decoder.rope.original_max_positions: must be positive, found 0" in found
    assert "decoder.rope.high_freq_factor: must exceed low_freq_factor (4.0), found 4.0" in found


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '"text"', "\xff", "[" * 100_000], ids=repr)
def test_files_that_are_no_description(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content[:100_000], encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json"):
        ModelSpec.load(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ModelSpec.load(tmp_path)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix] * bool(prefix) + [p for key, item in items for p in paths_of(item, (*prefix, key))]


PATHS = paths_of(b.V2.to_config())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON | st.integers(-2, 200)), min_size=1, max_size=3))
def test_any_change_gives_a_config_error_or_a_valid_model(edits: list[tuple[tuple[Any, ...], Any]]) -> None:
    changed: Any = copy.deepcopy(b.V2.to_config())
    for path, value in edits:
        target = changed
        try:
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier edit took the place away
    try:
        spec = ModelSpec.from_config(changed)
    except ConfigError as error:
        assert error.problems and all(len(line) < 400 for line in error.problems)
    else:
        assert ModelSpec.from_config(spec.to_config()) == spec


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_object_is_a_config_error(content: dict[str, Any]) -> None:
    assert problems(content)
