"""Checkpoints of the official code: the six golden ones, and variants against an independent forward pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ultramem_deploy
from ultramem_deploy import InputError
from ultramem_deploy.converters.importers import import_checkpoint, plan_import
from ultramem_deploy.spec import ModelSpec

from .official_cases import PLUS, V2, make_config, make_state, write_official
from .official_forward import Official

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
IDS = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(5))

VARIANTS: dict[str, dict[str, Any]] = {
    "v1 one head, skips, no q/k norm": {"mem_head": 1, "mem_insert_way": "0:1/2:2", "attention_layer_norm": False},
    "v1 biases, LayerNorm, multi-query": {
        "include_bias": True,
        "layer_norm_type": "default",
        "multi_query_attention": True,
        "mlp_hidden_size": None,
        "mlp_ratio": 2,
    },
    "v1 biases, untied": {"include_bias": True, "weight_tying": False},
    "v1 bias in norms alone": {"bias_for_layer_norm": True, "norm_after": True, "embedding_size": None},
    "v1 norms without weights, q/k norms with": {"layer_norm_with_affine": False, "layer_norm_eps": 1e-3},
    "v1 q/k norms without weights": {"attention_layer_norm_with_affine": False},
    "v1 no weights anywhere": {"attention_layer_norm_with_affine": False, "layer_norm_with_affine": False},
    "v1 overlapping paths": {"n_layers": 5, "mem_insert_way": "0:2/1:3/4:4"},
    "v1 paths out of order": {"n_layers": 4, "mem_insert_way": "3:3/0:1"},
    "v2 expanded, values apart": {
        **V2,
        "mem_key_expand_time": 2,
        "mem_value_expand_time": 4,
        "mem_share_ratio": 0.4,
        "mem_pre_vdim": 0,
    },
    "v2 expanded, values summed, gated": {
        **V2,
        "mem_key_expand_time": 2,
        "mem_share_ratio": 0.5,
        "mem_use_glu_act": True,
        "layer_norm_type": "low_precision",
        "rope_theta": 500000.0,
    },
    "v2 three heads": {**V2, "mem_head": 3, "weight_tying": False, "clip_qkv": 0.7},
    "v2 four heads, skips": {**V2, "mem_head": 4, "mem_insert_way": "0:1/2:2", "n_kv_heads": 2},
    "v2 lost layer keeps its window": {**V2, "mem_insert_way": "0:1/1:2", "mem_share_ratio": 0.7},
    "v2 vertical parallel 2": {**V2, "vertical_parallel": True, "mem_parallel_size": 2},
    "v2 vertical parallel 4": {
        **V2,
        "vertical_parallel": True,
        "mem_parallel_size": 4,
        "mem_key_expand_time": 2,
        "mem_share_ratio": 0.25,
    },
    "memory+ three heads, norm after": {**PLUS, "mem_head": 3, "norm_after": True, "mem_insert_way": "1:2"},
    "memory+ one head, untied": {**PLUS, "mem_head": 1, "weight_tying": False, "layer_norm_type": "default"},
    "no memory": {"mem_insert_way": "no_mem"},
}


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return ultramem_deploy.load(directory)(IDS)


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir()))
def test_golden_checkpoints_give_the_official_logits(case: str, tmp_path: Path) -> None:
    expected = load_file(GOLDEN / case / "expected.safetensors")
    import_checkpoint(GOLDEN / case, tmp_path / "out", dtype="float32")
    with torch.no_grad():
        found = ultramem_deploy.load(tmp_path / "out")(expected["input_ids"])
    assert (found - expected["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir()))
def test_the_independent_forward_gives_the_official_logits_too(case: str) -> None:
    from ultramem_deploy.yaml_file import read_yaml

    expected = load_file(GOLDEN / case / "expected.safetensors")
    ranks = sorted((GOLDEN / case).glob("rank_*/model.pt")) or [GOLDEN / case / "model.pt"]
    states = [torch.load(file, weights_only=True) for file in ranks]
    state = {n: torch.cat([s[n] for s in states], 1) if "full_memory" in n else t for n, t in states[0].items()}
    found = Official(read_yaml(GOLDEN / case / "config.yaml")["model"], state)(expected["input_ids"])
    assert (found - expected["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_compute_what_the_official_code_computes(name: str, tmp_path: Path) -> None:
    config = make_config(**VARIANTS[name])
    state = make_state(config)
    import_checkpoint(write_official(tmp_path / "source", config, state), tmp_path / "out")
    expected = Official(config, state)(IDS)
    assert (logits(tmp_path / "out") - expected).abs().max() < 1e-4
    bare = {n: torch.zeros_like(t) if n.endswith("values_proj.weight") else t for n, t in state.items()}
    assert name == "no memory" or (Official(config, bare)(IDS) - expected).abs().max() > 0.1


def test_bfloat16_tensors_stay_bit_for_bit(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config, dtype=torch.bfloat16)
    source = write_official(tmp_path / "source", config, state)
    import_checkpoint(source, tmp_path / "kept")
    kept = ultramem_deploy.load(tmp_path / "kept").state_dict()
    assert torch.equal(kept["tables.layer1.values"], state["transformer.mem_blocks.1.values_for_look_up"])
    assert torch.equal(kept["memory.0.col_keys"][0, 1], state["transformer.mem_blocks.0.keys"][0, 1, :, :, 1])
    assert kept["memory.0.shuffle"].dtype == torch.int64
    import_checkpoint(source, tmp_path / "wide", dtype="float32")
    assert (logits(tmp_path / "wide") - Official(config, state)(IDS)).abs().max() < 1e-4


@pytest.mark.parametrize("prefix", ["transformer.", "", "model.transformer.", "module.transformer.", "model.module."])
def test_safetensors_with_any_prefix(tmp_path: Path, prefix: str) -> None:
    config = make_config()
    state = make_state(config)
    one, two = tmp_path / "one", tmp_path / "two"
    write_official(one, config, state)
    write_official(two, config, {})
    (two / "model.pt").unlink()
    save_file({prefix + n.removeprefix("transformer."): t for n, t in state.items()}, two / "model.safetensors")
    for source in (one, two):
        import_checkpoint(source, source.with_suffix(".out"))
    shards = [sorted(source.with_suffix(".out").glob("*.safetensors")) for source in (one, two)]
    assert [a.read_bytes() for a in shards[0]] == [b.read_bytes() for b in shards[1]]
    assert ModelSpec.load(one.with_suffix(".out")) == plan_import(two).spec


def test_views_of_one_storage_are_read_as_they_are(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    together = torch.stack([state[f"transformer.blocks.{i}.attn_out.weight"] for i in range(3)])
    for i in range(3):
        state[f"transformer.blocks.{i}.attn_out.weight"] = together[i].T  # strided, one storage, an offset
    import_checkpoint(write_official(tmp_path / "source", config, state), tmp_path / "out")
    assert (logits(tmp_path / "out") - Official(config, state)(IDS)).abs().max() < 1e-4


def test_a_changed_rank_is_another_source(tmp_path: Path) -> None:
    """Weights below the top are part of what a finished output is compared with, whatever else lies beside them."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(GOLDEN / "v2-vertical-parallel2", source)
    (source / "train.pt").write_bytes(b"not weights")
    import_checkpoint(source, out)
    assert import_checkpoint(source, out)["up_to_date"]
    file = source / "rank_1/model.pt"
    state = torch.load(file, weights_only=True)
    state["transformer.full_memory_layer.values_for_look_up"] += 1
    torch.save(state, file)
    with pytest.raises(InputError, match="made otherwise"):
        import_checkpoint(source, out)
