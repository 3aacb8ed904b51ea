"""Each quirk of the official code (spec §6): reproduced or refused by name; and sources that almost fit."""

from __future__ import annotations

import base64
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import ultramem_deploy
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.cli import main
from ultramem_deploy.converters.importers import import_checkpoint, plan_import
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.inspection import inspect
from ultramem_deploy.rank_one import rank_one

from .official_cases import PLUS, V2, make_config, make_state, write_config, write_official, write_rank
from .official_forward import Official
from .test_olmo_ultramem import IDS, logits

U, V = (f"transformer.mem_blocks.0.tucker_core_{one}" for one in "uv")


def problem(directory: Path, **changes: Any) -> str:
    """What planning says of a configuration that cannot work."""
    write_config(directory, make_config(**changes))
    with pytest.raises(ConfigError) as caught:
        plan_import(directory)
    return str(caught.value)


def warnings(source: Path) -> str:
    """What both `inspect` and the plan say."""
    said = "\n".join(plan_import(source).warnings)
    assert said in "\n".join(inspect(source)["warnings"])
    return said


def test_quirk_1_one_query_for_both_ranks_cannot_run(tmp_path: Path) -> None:
    text = problem(tmp_path, mem_type="ultramem_v2")
    assert "mem_q_for_each_tucker_rank: false (the default) cannot run with ultramem_v2: half of the 8 numbers" in text
    done = CliRunner().invoke(main, ["convert", str(tmp_path), str(tmp_path / "out")])
    assert done.exit_code == 2


def test_quirk_1_dead_query_rows_are_dropped_and_reported(tmp_path: Path) -> None:
    config = make_config(**V2)
    state = make_state(config)
    source = write_official(tmp_path / "source", config, state)
    assert "share outputs 0 to 16 of query_proj; the other 16 rows of every memory layer are dead" in warnings(source)
    import_checkpoint(source, tmp_path / "out")
    expected = state["transformer.mem_blocks.1.query_proj.weight"][:16]
    assert np.array_equal(Checkpoint.open(tmp_path / "out").array("memory.1.query.weight"), expected.numpy())


@pytest.mark.parametrize(("changes", "limit"), [({}, 2), (V2, 4)])
def test_more_heads_than_queries_serve_cannot_run(tmp_path: Path, changes: dict[str, Any], limit: int) -> None:
    assert f"mem_head: at most {limit} heads can run" in problem(tmp_path, **changes, mem_head=limit + 1)


def test_quirk_2_saved_factors_are_kept(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    source = write_official(tmp_path / "source", config, state)
    assert "memory layer 0: tucker_core_u and _v are kept as saved, a step behind the saved cores" in warnings(source)
    import_checkpoint(source, tmp_path / "out")
    assert np.array_equal(Checkpoint.open(tmp_path / "out").array("memory.0.u"), state[U][0, :, 0].numpy())


def test_quirk_2_factors_that_do_not_lag_are_not_mentioned(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    for i in range(3):
        m = f"transformer.mem_blocks.{i}.tucker_core"
        u, v = rank_one((state[f"{m}.0"] + state[f"{m}.1"]).numpy())
        state[f"{m}_u"], state[f"{m}_v"] = (torch.from_numpy(-one)[None, :, None] for one in (u, v))
    assert "tucker_core" not in warnings(write_official(tmp_path / "source", config, state))


def test_quirk_3_the_padding_index_of_vertical_parallel(tmp_path: Path) -> None:
    """The slot whose shuffled index is the number of all values counts as zero; without vertical parallel it counts."""
    changes = {**V2, "mem_knum": 3, "mem_key_expand_time": 2, "vertical_parallel": True, "mem_parallel_size": 2}
    config = make_config(**changes, mem_share_ratio=0.95, mem_value_expand_time=4)
    state = make_state(config)
    source = write_official(tmp_path / "source", config, state)
    assert "vertical_parallel: with 100 virtual slots the official code mistakes slot 27" in warnings(source)
    import_checkpoint(source, tmp_path / "out")
    expected = Official(config, state)(IDS)
    assert (logits(tmp_path / "out") - expected).abs().max() < 1e-4
    assert (Official(config | {"vertical_parallel": False}, state)(IDS) - expected).abs().max() > 0.1


def test_quirk_3_is_not_mentioned_where_no_slot_has_the_index(tmp_path: Path) -> None:
    changes = {**V2, "vertical_parallel": True, "mem_parallel_size": 2, "mem_key_expand_time": 2}
    source = write_official(tmp_path / "source", make_config(**changes, mem_share_ratio=0.25))
    assert "padding" not in warnings(source).replace("padding rows", "")
    assert all(layer.empty_slot is None for layer in plan_import(source).spec.memory)


def test_quirk_4_lost_paths_are_dropped_and_reported(tmp_path: Path) -> None:
    config = make_config(n_layers=6, mem_insert_way="0:2/1:3/3:4/4:9/5:5")
    said = warnings(write_official(tmp_path / "source", config))
    assert "memory layer 0 (0:2) is dropped" in said and "path 1 is read before block 2 is done" in said
    assert "memory layer 1 (1:3) is dropped" in said and "memory layer 3 (4:9) is dropped" in said
    assert "memory layer 2 (3:4) is dropped" in said  # block 4 is read before its own output is added
    spec = plan_import(tmp_path / "source").spec
    assert [(layer.read_block, layer.write_block) for layer in spec.memory] == [(5, 5)]


def test_two_paths_from_one_block_cannot_run(tmp_path: Path) -> None:
    assert "block 0 is read by 2 paths" in problem(tmp_path, mem_insert_way="0:1/0:2")


def test_quirk_5_zero_factors_are_computed_from_the_cores(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    state |= {name: torch.zeros_like(t) for name, t in state.items() if "tucker_core_" in name}
    source = write_official(tmp_path / "source", config, state)
    assert "memory layer 2: tucker_core_u and tucker_core_v are all zero" in warnings(source)
    import_checkpoint(source, tmp_path / "out")
    for i in range(3):
        m = f"transformer.mem_blocks.{i}.tucker_core"
        u, v = rank_one((state[f"{m}.0"] + state[f"{m}.1"]).numpy())
        state[f"{m}_u"], state[f"{m}_v"] = torch.from_numpy(u)[None, :, None], torch.from_numpy(v)[None, :, None]
    assert (logits(tmp_path / "out") - Official(config, state)(IDS)).abs().max() < 1e-4


def test_quirk_6_padding_rows_of_the_embedding(tmp_path: Path) -> None:
    source = write_official(tmp_path / "source", make_config())
    assert "embedding_size 64 exceeds vocab_size 60: the 4 padding rows are kept" in warnings(source)
    assert "embedding_size: must be at least vocab_size (60)" in problem(tmp_path / "two", embedding_size=50)


def test_every_problem_of_a_configuration_is_listed_at_once(tmp_path: Path) -> None:
    text = problem(
        tmp_path, alibi=True, scale_logits=True, block_type="llama", mem_typ="x", rope=False, activation_type="gelu",
        embedding_layer_norm=True, layer_norm_type="amd", mem_knum=0, norm_position="x",
    )  # fmt: skip
    for key in ("alibi", "scale_logits", "block_type", "mem_typ", "rope", "activation_type", "embedding_layer_norm"):
        assert key in text
    assert "layer_norm_type: expected one of rms, default, low_precision, found 'amd'" in text
    assert "mem_knum" in text and "'norm_position': unknown key" in text


def test_a_misspelt_key_is_told_the_right_one(tmp_path: Path) -> None:
    text = problem(tmp_path, mem_type=..., mem_typ="ultramem_v1")
    assert "'mem_typ': unknown key (value 'ultramem_v1'); did you mean mem_type?" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mem_type": "memory+"}, "mem_type: expected one of ultramem_v1, ultramem_v2, memory_plus, found 'memory+'"),
        ({"mem_vdim": 15}, "mem_vdim: must be a multiple of the 2 Tucker cores"),
        ({**PLUS, "mem_vdim": 16}, "mem_vdim: memory_plus needs d_model (32), found 16"),
        ({"mem_knn": 99}, "mem_knn: exceeds the 16 keys a side"),
        ({**V2, "mem_value_expand_time": 3}, "mem_value_expand_time: must be 1 or"),
        ({**V2, "mem_share_ratio": 1.5}, "mem_share_ratio: must be at most 1"),
        ({"mem_insert_way": "0-1"}, "mem_insert_way: expected full, no_mem or"),
        ({"vertical_parallel": True, "mem_parallel_size": 2}, "only ultramem_v2 splits its tables"),
        ({**V2, "vertical_parallel": True}, "vertical_parallel needs more than 1, found 1"),
        ({"mem_parallel_size": 2}, "needs vertical_parallel true"),
        ({**V2, "vertical_parallel": True, "mem_parallel_size": 3}, "must be a multiple of the 2 Tucker cores"),
        ({"n_heads": 5}, "n_heads: must divide d_model (32)"),
        ({"mlp_hidden_size": 33}, "SwiGLU needs an even width"),
        ({"multi_query_attention": True, "n_kv_heads": 2}, "asks for n_kv_heads 1, found 2"),
        ({"rope": ...}, "rope: only true is supported"),
    ],
)
def test_configurations_that_cannot_run(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problem(tmp_path, **changes)


def test_a_bias_of_the_output_projection(tmp_path: Path) -> None:
    config = make_config(include_bias=True, weight_tying=False)
    state = make_state(config)
    import_checkpoint(write_official(tmp_path / "source", config, state), tmp_path / "out")
    assert (logits(tmp_path / "out") - Official(config, state)(IDS)).abs().max() < 1e-4


def vertical(tmp_path: Path, ranks: int = 2) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    config = make_config(**V2, vertical_parallel=True, mem_parallel_size=2)
    state = make_state(config)
    source = write_official(tmp_path / "source", config, state)
    for rank in range(2, ranks):
        write_rank(source, config, state, rank)
    return source, config, state


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    source, _, _ = vertical(tmp_path)
    shutil.rmtree(source / "rank_1")
    with pytest.raises(
        InputError, match=r"rank_1/model\.pt is missing: mem_parallel_size 2 needs ranks 0 to 1, found 0"
    ):
        plan_import(source)


def test_replicas_are_left_unread(tmp_path: Path) -> None:
    source, _, _ = vertical(tmp_path, 4)
    assert "ranks 0 to 1 are read; the 2 others are replicas" in warnings(source)


def test_ranks_that_disagree_are_refused(tmp_path: Path) -> None:
    source, config, state = vertical(tmp_path)
    shutil.rmtree(source / "rank_1")
    state["transformer.blocks.1.attn_norm.weight"] += 1
    write_rank(source, config, state, 1)
    with pytest.raises(InputError, match=r"rank_1/model.pt: tensor 'blocks.1.attn_norm.weight' differs"):
        plan_import(source)


def test_ranks_of_a_run_without_vertical_parallel(tmp_path: Path) -> None:
    source, _, _ = vertical(tmp_path)
    write_config(source, make_config(**V2))
    with pytest.raises(InputError, match="config and weights are of different runs"):
        plan_import(source)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    state["transformer.extra"] = torch.zeros(3)
    state["transformer.ln_f.weight"] = torch.zeros(3)
    del state["transformer.wte.weight"]
    source = write_official(tmp_path / "source", config, state)
    with pytest.raises(InputError) as caught:
        plan_import(source)
    text = str(caught.value)
    assert "missing: 'wte.weight' [64, 32]" in text and "unexpected: 'extra' [3]" in text
    assert "'ln_f.weight' expected [32], found [3]" in text


def test_a_damaged_shuffle_is_found_while_it_is_written(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    state["transformer.mem_blocks.1.shuffle_index"][3] = 256
    with pytest.raises(
        InputError, match=r"mem_blocks\.1\.shuffle_index.*holds indices from \d+ to 256, expected 0 to 255"
    ):
        import_checkpoint(write_official(tmp_path / "source", config, state), tmp_path / "out")


def test_a_plain_olmo_run_is_a_near_miss(tmp_path: Path) -> None:
    write_config(tmp_path, {key: value for key, value in make_config().items() if not key.startswith("mem_")})
    with pytest.raises(InputError, match="olmo-ultramem comes closest .* no key begins with mem_"):
        plan_import(tmp_path)
    write_config(tmp_path, {"lr": 1})
    with pytest.raises(InputError, match="has no model section"):
        plan_import(tmp_path)


def test_the_run_s_own_configuration_beside_hugging_face_s(tmp_path: Path) -> None:
    source = write_official(tmp_path / "source", make_config())
    (source / "config.json").write_text('{"model_type": "hf_olmo"}')
    assert plan_import(source).family == "olmo-ultramem"
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="unknown model: .*gpt2"):
        plan_import(source)


def test_several_forms_of_weights(tmp_path: Path) -> None:
    config = make_config()
    source = write_official(tmp_path / "source", config)
    write_rank(source, config | {"mem_parallel_size": 1}, make_state(config), 0)
    assert "model.pt is read; rank_0 beside it left unread" in warnings(source)


def test_a_configuration_without_a_model_section(tmp_path: Path) -> None:
    config = make_config()
    source = write_official(tmp_path, config)
    expected = plan_import(source).spec
    write_config(source, config, section=False)
    assert plan_import(source).spec == expected


def test_family_of_another_source_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, make_config())
    with pytest.raises(InputError, match=r"family llama reads a model directory with config\.json"):
        plan_import(tmp_path, family="llama")


def test_safetensors_as_the_official_code_writes_them(tmp_path: Path) -> None:
    config = make_config()
    state = make_state(config)
    write_config(tmp_path / "source", config)
    encoded = {
        base64.urlsafe_b64encode(pickle.dumps(((name,), False))).decode("ascii"): tensor
        for name, tensor in state.items()
    }
    save_file(encoded, tmp_path / "source" / "model.safetensors")
    import_checkpoint(tmp_path / "source", tmp_path / "out")
    assert (logits(tmp_path / "out") - Official(config, state)(IDS)).abs().max() < 1e-4


@given(st.data())
@settings(max_examples=200)
def test_mutated_configurations_give_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    source = tmp_path_factory.getbasetemp() / "mutated_config"
    if not source.exists():
        write_official(source, make_config(**V2))
        (source / "good").write_bytes((source / "config.yaml").read_bytes())
    content = bytearray((source / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4) | st.sampled_from(_WORDS))
    (source / "config.yaml").write_bytes(content)
    try:
        plan_import(source)
    except InputError as error:
        assert "\n" not in str(error)


_WORDS = [b"\n", b": ", b"null", b"-1", b"1e9", b"true", b"99999999999", b"\n  x: 1"]


def test_no_torch_is_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    source = write_official(tmp_path / "source", make_config())
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from ultramem_deploy.converters.importers import import_checkpoint\n"
        "from ultramem_deploy.converters.exporters import export_olmo_ultramem\n"
        f"a, b, c = Path({str(source)!r}), Path({str(tmp_path / 'a')!r}), Path({str(tmp_path / 'b')!r})\n"
        "import_checkpoint(a, b)\nexport_olmo_ultramem(b, c)\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert ultramem_deploy.load(tmp_path / "a").spec.source_family == "olmo-ultramem"
