"""Mixtures of experts on disk: experts one by one or fused, and the keys that say which blocks have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.importers import import_checkpoint, plan_import
from ultramem_deploy.converters.importers.config_reader import ConfigReader
from ultramem_deploy.converters.importers.deepseek_v3 import DEEPSEEK_V3
from ultramem_deploy.converters.importers.matching import NameMap
from ultramem_deploy.converters.importers.qwen2_moe import QWEN2_MOE
from ultramem_deploy.converters.importers.qwen3_moe import QWEN3_MOE
from ultramem_deploy.errors import InputError

from .sources import Shapes, family_config, llama_shapes, random_tensors, write_source

COUNT, WIDTH = 4, 48
DEEPSEEK = {
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "moe_intermediate_size": 12, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 5, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
}  # fmt: skip


def mixtral_tensors() -> dict[str, np.ndarray[Any, Any]]:
    shapes: Shapes = {n: s for n, s in llama_shapes().items() if ".mlp." not in n}
    for layer in range(2):
        block = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{block}.gate.weight"] = (COUNT, 32)
        for expert in range(COUNT):
            shapes |= {f"{block}.experts.{expert}.{name}.weight": (WIDTH, 32) for name in ("w1", "w3")}
            shapes[f"{block}.experts.{expert}.w2.weight"] = (32, WIDTH)
    return random_tensors(shapes)


def fused(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The same experts side by side: gate rows and then up rows."""
    kept = {name: array for name, array in tensors.items() if ".experts." not in name}
    for layer in range(2):
        block = f"model.layers.{layer}.block_sparse_moe.experts"
        one = [[tensors[f"{block}.{e}.{part}.weight"] for e in range(COUNT)] for part in ("w1", "w3", "w2")]
        kept[f"{block}.gate_up_proj"] = np.concatenate([np.stack(one[0]), np.stack(one[1])], axis=1)
        kept[f"{block}.down_proj"] = np.stack(one[2])
    return kept


def test_fused_experts_are_the_same_experts(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    config = family_config("mixtral")
    results = []
    for name, held in (("single", tensors), ("fused", fused(tensors))):
        import_checkpoint(write_source(tmp_path / name, config, held), tmp_path / f"{name}-out")
        results.append(Checkpoint.open(tmp_path / f"{name}-out"))
    assert results[0].tensors.keys() == results[1].tensors.keys()
    for name in results[0].tensors:
        np.testing.assert_array_equal(results[0].array(name), results[1].array(name))
    expert = results[0].array("model.layers.1.mlp.experts.2.up_proj.weight")
    np.testing.assert_array_equal(expert, tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"])


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    tensors = mixtral_tensors()
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    source = write_source(tmp_path / "source", family_config("mixtral"), tensors)
    with pytest.raises(InputError, match=r"missing: .*block_sparse_moe\.experts\.3\.w2\.weight"):
        plan_import(source)


def test_name_maps_know_blocks_and_experts() -> None:
    names = NameMap([("a.{i}.b.{e}.c", "x.{e}.y.{i}")])
    assert names.source("a.12.b.7.c") == "x.7.y.12"
    assert names.source("a.12.b.7.d") == "a.12.b.7.d"


def decoder(importer: Any, **changes: Any) -> tuple[Any, list[str]]:
    reader = ConfigReader(family_config(importer.family, **changes), "config.json")
    return importer.decoder(reader), reader.problems


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, (0, 1, 2, 3)),
        ({"mlp_only_layers": [1]}, (0, 2, 3)),
        ({"decoder_sparse_step": 2}, (1, 3)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1,)),
    ],
)
def test_qwen_blocks_with_experts(changes: dict[str, Any], blocks: tuple[int, ...]) -> None:
    for importer in (QWEN2_MOE, QWEN3_MOE):
        found, problems = decoder(importer, num_hidden_layers=4, shared_expert_intermediate_size=8, **changes)
        assert not problems
        assert found.experts.layers == blocks
    assert decoder(QWEN3_MOE, mlp_only_layers=[0, 1])[0].experts is None


def test_qwen3_experts_by_either_name() -> None:
    for name in ("num_experts", "num_local_experts"):
        found, problems = decoder(QWEN3_MOE, **{"num_experts": ..., name: 6})
        assert not problems
        assert found.experts.count == 6


def test_deepseek() -> None:
    found, problems = decoder(DEEPSEEK_V3, **DEEPSEEK)
    assert not problems
    assert (found.head_dim, found.num_kv_heads, found.latent.rope_dim) == (10, 4, 4)
    assert (found.experts.layers, found.experts.shared_width, found.experts.routing.groups) == ((1,), 24, 2)
    assert found.rope.interleaved
    yarn = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1e4}
    scaled, problems = decoder(DEEPSEEK_V3, **DEEPSEEK, rope_parameters=yarn)
    assert not problems
    # 0.1*ln(40) + 1 on each side of the product, as DeepSeek's own code has it.
    assert scaled.attention_scale == pytest.approx(10**-0.5 * (0.1 * np.log(40) + 1) ** 2)
    assert scaled.rope.attention_factor == pytest.approx(1.0)
