"""Layouts and budgets of added memory layers, counted anew from what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.upcycle.identity import upcycled_spec
from ultramem_deploy.converters.upcycle.identity_options import IdentityOptions
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import convert, export, fold, upcycle, verify
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.spec import ModelSpec

V2: dict[str, Any] = {"layout": "v2", "knum": 8, "key_width": 8, "value_width": 6, "top_m": 3}
DENSE = ModelSpec(b.decoder(hidden_size=64, intermediate_size=96, num_layers=4, vocab_size=300))


def numbers(directory: Path, prefix: str) -> int:
    return sum(int(np.prod(info.shape)) for name, info in Checkpoint.open(directory).tensors.items() if prefix in name)


def test_v2_lies_in_every_block_and_changes_no_bit(written: Written, tmp_path: Path) -> None:
    dense = written(b.PLAIN, "dense")
    receipt = upcycle(dense, tmp_path / "out", **V2)
    spec = ModelSpec.load(tmp_path / "out")
    blocks = range(spec.decoder.num_layers)
    assert receipt["memory_layers"] == [f"{block}:{block}" for block in blocks]
    assert [(layer.kind, layer.table, layer.offset) for layer in spec.memory] == [
        ("ultramem_v2", "shared", 64 * block) for block in blocks
    ]
    assert spec.tables["shared"].rows == 64 * len(blocks) and spec.tables["shared"].pre_value_width == 6
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(load(dense)(ids), load(tmp_path / "out")(ids))
    values = Checkpoint.open(tmp_path / "out").array("tables.shared.pre_values")
    assert 0.015 < values.std() < 0.025, "drawn as the published code does"


def test_v2_goes_the_whole_way(written: Written, tmp_path: Path) -> None:
    """Folded, exported and run; and back to the official layout, which has a place for each of its sizes."""
    upcycle(written(b.PLAIN, "dense", tokenizer=True), tmp_path / "out", **V2)
    fold(tmp_path / "out", tmp_path / "folded", mode="shuffle")
    export(tmp_path / "folded", tmp_path / "onnx")
    assert verify(tmp_path / "folded", tmp_path / "onnx", tokens=32)["max_abs_logit_error"] < 1e-3


def test_official_code_could_go_on_training_v2(tmp_path: Path) -> None:
    decoder = b.decoder(head_dim=8, norm=replace(b.DECODER.norm, eps=1e-5))
    dense = b.write_checkpoint(tmp_path / "dense", ModelSpec(decoder))
    upcycle(dense, tmp_path / "out", **V2)
    convert(tmp_path / "out", tmp_path / "official", to="olmo-ultramem")
    convert(tmp_path / "official", tmp_path / "back")
    assert ModelSpec.load(tmp_path / "back").memory == ModelSpec.load(tmp_path / "out").memory


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("ratio", [2.0, 12.0])
def test_sparse_parameters_choose_the_tables(written: Written, tmp_path: Path, layout: str, ratio: float) -> None:
    dense = written(DENSE, "dense")
    upcycle(dense, tmp_path / "out", layout=layout, sparse_parameters=ratio, key_width=8, value_width=8, top_m=4)
    held = numbers(tmp_path / "out", "tables.")
    assert held / numbers(dense, "") == pytest.approx(ratio, rel=0.05), "knum is a whole number"


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("budget", [0.6, 1.5])
def test_a_compute_budget_chooses_top_m(layout: str, budget: float) -> None:
    """By hand: projections and keys meet every token, and of the values as many numbers as are taken."""
    options = IdentityOptions(layout=layout, knum=16, key_width=8, value_width=8, compute_budget=budget)
    spec = upcycled_spec(DENSE, options)
    layer, layers, d = spec.memory[0], len(spec.memory), DENSE.decoder.hidden_size
    pre = 8 if layout == "v2" else 0
    keys = layer.heads * 2 * (layer.row_keys + layer.col_keys) * 8
    small = 2 * 8 + 2 * layer.heads * 4  # norms and cores
    fixed = 2 * 8 * d + keys + small + 8 * layer.blocks * d + pre * d
    dense = parameter_counts(DENSE)["parameters_active"]

    def share(top_m: int) -> float:
        return layers * (fixed + layer.heads * top_m * (8 + pre)) / dense

    assert share(layer.top_m) <= budget < share(layer.top_m + 1) or layer.top_m == 256


def test_budgets_that_no_size_meets(written: Written, tmp_path: Path) -> None:
    dense = written(DENSE, "dense")
    with pytest.raises(InputError, match=r"--sparse-parameters: 0.001 times .* tables of 0 x 0 rows, and --top-m 16"):
        upcycle(dense, tmp_path / "out", sparse_parameters=0.001)
    with pytest.raises(InputError, match="--compute-budget: projections and keys alone multiply .* found 0.01; give"):
        upcycle(dense, tmp_path / "out", compute_budget=0.01)
    with pytest.raises(InputError, match="--compute-budget: expected a positive number, found -1"):
        upcycle(dense, tmp_path / "out", compute_budget=-1.0)
    with pytest.raises(InputError, match="--layout: expected one of v1, v2, found 'v3'"):
        upcycle(dense, tmp_path / "out", layout="v3")
    assert not list(tmp_path.glob("out*"))
