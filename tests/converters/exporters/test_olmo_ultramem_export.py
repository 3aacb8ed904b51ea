"""The way back to the official layout: identical round trips, and refusals by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.converters.importers.official_cases import make_config, make_state, write_official
from tests.converters.importers.official_forward import Official
from tests.converters.importers.test_olmo_ultramem import IDS, VARIANTS
from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.converters.exporters import export_olmo_ultramem
from ultramem_deploy.converters.exporters.olmo_description import official_model
from ultramem_deploy.converters.exporters.torch_file import write_torch_file
from ultramem_deploy.converters.importers import import_checkpoint
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.yaml_file import read_yaml


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name != "provenance.json"}


@pytest.mark.parametrize("name", [name for name in VARIANTS if "lost" not in name])
def test_there_and_back_again_is_identical(name: str, tmp_path: Path) -> None:
    config = make_config(**VARIANTS[name])
    import_checkpoint(write_official(tmp_path / "source", config), tmp_path / "one")
    export_olmo_ultramem(tmp_path / "one", tmp_path / "back")
    import_checkpoint(tmp_path / "back", tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    state = torch.load(tmp_path / "back" / "model.pt", weights_only=True, mmap=True)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in state.values())
    written = read_yaml(tmp_path / "back" / "config.yaml")["model"]
    expected = Official(config, make_state(config))(IDS)
    assert (Official(written, state)(IDS) - expected).abs().max() < 1e-9


def test_a_padding_value_of_vertical_parallel_comes_back_as_ranks(tmp_path: Path) -> None:
    """Four ranks in, the two that suffice out: each holds half of every table row."""
    changes = {"mem_type": "ultramem_v2", "mem_q_for_each_tucker_rank": True, "mem_knum": 3, "mem_key_expand_time": 2}
    parallel = {"vertical_parallel": True, "mem_parallel_size": 4, "mem_share_ratio": 0.95, "mem_value_expand_time": 4}
    config = make_config(**changes, **parallel)
    import_checkpoint(write_official(tmp_path / "source", config), tmp_path / "one")
    assert ModelSpec.load(tmp_path / "one").memory[0].empty_slot == 27
    export_olmo_ultramem(tmp_path / "one", tmp_path / "back")
    assert sorted(file.name for file in (tmp_path / "back").glob("rank_*/model.pt")) == ["model.pt", "model.pt"]
    import_checkpoint(tmp_path / "back", tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    written = read_yaml(tmp_path / "back" / "config.yaml")["model"]
    assert (written["vertical_parallel"], written["mem_parallel_size"]) == (True, 2)


def test_rows_that_ranks_cannot_share_are_refused(tmp_path: Path) -> None:
    """Else the last column of the pre-values would be lost."""
    changes = {"mem_type": "ultramem_v2", "mem_q_for_each_tucker_rank": True, "mem_knum": 3, "mem_key_expand_time": 2}
    parallel = {"vertical_parallel": True, "mem_parallel_size": 2, "mem_share_ratio": 0.95, "mem_value_expand_time": 4}
    spec = spec_of(tmp_path, **changes, **parallel)
    assert spec.memory[0].empty_slot is not None and official_model(spec, "config.json").group == 2
    odd = {name: replace(table, pre_value_width=7) for name, table in spec.tables.items()}
    with pytest.raises(ConfigError, match="rows of 7 numbers, of which 2 ranks of vertical parallel cannot hold"):
        official_model(replace(spec, tables=odd), "config.json")


def test_a_second_export_has_nothing_to_do_and_dead_rows_are_reported(tmp_path: Path) -> None:
    config = make_config(mem_type="ultramem_v2", mem_q_for_each_tucker_rank=True)
    import_checkpoint(write_official(tmp_path / "source", config), tmp_path / "one")
    first = export_olmo_ultramem(tmp_path / "one", tmp_path / "back")
    assert "memory layer 0: the 16 dead rows of query_proj are written as zeros" in first["warnings"]
    assert not first["up_to_date"] and export_olmo_ultramem(tmp_path / "one", tmp_path / "back")["up_to_date"]


def spec_of(tmp_path: Path, **changes: Any) -> ModelSpec:
    import_checkpoint(write_official(tmp_path / "source", make_config(**changes)), tmp_path / "one")
    return ModelSpec.load(tmp_path / "one")


def test_a_folded_model_is_refused_by_name(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    folded = replace(spec, memory=(replace(spec.memory[0], expanded=True), *spec.memory[1:]))
    with pytest.raises(ConfigError, match=r"memory\.0: folded.*from before `fold`"):
        official_model(folded, "x")


def test_what_the_layout_cannot_say_is_listed_at_once(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    decoder = replace(spec.decoder, activation="gelu", qkv_bias=True)
    memory = (spec.memory[0], replace(spec.memory[1], top_m=3), spec.memory[2])
    with pytest.raises(ConfigError) as caught:
        official_model(replace(spec, decoder=decoder, memory=memory), "x")
    text = str(caught.value)
    assert "decoder.activation: expected silu, found gelu" in text
    assert "decoder.mlp_bias: expected True, found False" in text
    assert "memory.1.top_m: expected 4, found 3" in text


def test_paths_that_only_we_can_run_are_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    crossing = tuple(
        replace(layer, read_block=a, write_block=b)
        for layer, (a, b) in zip(spec.memory, ((0, 1), (1, 2)), strict=False)
    )
    tables = {layer.table: spec.tables[layer.table] for layer in crossing}
    with pytest.raises(ConfigError, match=r"memory\.0: the official code would lose it"):
        official_model(replace(spec, memory=crossing, tables=tables), "x")


def test_queries_that_differ_within_a_pair_are_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, mem_type="ultramem_v2", mem_q_for_each_tucker_rank=True, mem_head=4)
    model = official_model(spec, "x")
    from ultramem_deploy.converters.exporters.olmo_tensors import OfficialTensors

    tensors = OfficialTensors(spec, model, Checkpoint.open(tmp_path / "one"))
    query = np.array(tensors.source.array("memory.0.query.weight"))
    query[-1] += 1
    tensors._copy = lambda name: TensorTask.of(name, query)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="head 3 has a query of its own"):
        tensors._query("memory.0.", 0)


def test_large_counts_in_a_torch_file(tmp_path: Path) -> None:
    huge = TensorTask("x", "float32", (0, 1 << 40), lambda a, b: np.zeros((b - a, 1 << 40), np.float32))
    write_torch_file(tmp_path / "model.pt", [huge])
    assert torch.load(tmp_path / "model.pt", weights_only=True)["x"].shape == (0, 1 << 40)
    with pytest.raises(InputError, match="holds uint8"):
        write_torch_file(tmp_path / "model.pt", [TensorTask.of("x", np.zeros(3, np.uint8))])
