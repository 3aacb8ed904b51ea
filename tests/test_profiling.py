"""Counting accesses: every slot that a text reads, the figures that follow, the file that keeps them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy import profiling
from ultramem_deploy.cli import main
from ultramem_deploy.errors import InputError
from ultramem_deploy.pipeline import export, profile
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.runtime.torch_runner import TorchRunner

TOKENS = 600


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return b.write_text(tmp_path / "text.txt")


def test_every_access_is_counted(written: Written, text: Path, tmp_path: Path) -> None:
    model, out = written(b.V2, tokenizer=True), tmp_path / "accesses.safetensors"
    told = profile(model, text=text, tokens=TOKENS, out=out)
    ids = np.array(Tokenizer(model).encode(text.read_text())[:TOKENS])
    # In windows of 256, as told: a window is a context of its own.
    traces = [TorchRunner(model).trace(ids[i : i + 256][None]) for i in range(0, TOKENS, 256)]
    assert (told["text"], told["tokens"]) == ("text.txt", TOKENS)
    for index, layer in enumerate(b.V2.memory):
        expected = Counter(int(slot) for trace in traces for slot in trace.layers[index].indices.reshape(-1))
        counts = load_file(out)[f"accesses.{index}"]
        assert {slot: int(n) for slot, n in enumerate(counts) if n} == expected
        found = told["layers"][index]
        assert found["accesses"] == TOKENS * layer.taken and found["dead_slots"] == 144 - len(expected)
        ranked = sorted(expected.values(), reverse=True)
        assert found["hottest_share"]["10%"] == pytest.approx(sum(ranked[:14]) / sum(ranked))
        assert found["most_accesses"] == ranked[0] and sum(found["histogram"].values()) == 144


def test_the_histogram_has_a_bar_for_every_doubling() -> None:
    found = profiling.report(0, np.array([0, 0, 1, 2, 3, 4, 8, 15]))
    assert found["histogram"] == {"0": 2, "1": 1, "2-3": 2, "4-7": 1, "8-15": 2}
    assert found["hottest_share"] == {"1%": 15 / 33, "10%": 15 / 33}


def test_a_bundle_reads_the_same_slots(written: Written, text: Path, tmp_path: Path) -> None:
    model = written(b.V1, tokenizer=True)
    export(model, tmp_path / "bundle")
    ours, torchs = (profile(path, text=text, tokens=300) for path in (tmp_path / "bundle", model))
    assert ours["runtime"] == "ort" and torchs["runtime"] == "torch" and ours["layers"] == torchs["layers"]


def test_the_command_prints_and_draws(written: Written, text: Path, tmp_path: Path) -> None:
    model, picture = written(b.V1, tokenizer=True), tmp_path / "heat.png"
    options = ["--text", str(text), "--tokens", "300", "--plot", str(picture)]
    result = CliRunner().invoke(main, ["profile", str(model), *options])
    assert result.exit_code == 0, result.output
    assert "2,400 accesses of 144 slots" in result.stdout and "the hottest 1% take" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_large_grids_are_drawn_coarsely_and_lose_nothing() -> None:
    grid = np.random.default_rng(0).integers(0, 9, (1000, 300))
    coarse = profiling._coarse(grid)
    assert coarse.shape == (256, 256) and coarse.sum() == grid.sum()
    assert profiling._coarse(grid[:5, :7]).tolist() == grid[:5, :7].tolist()


def test_a_profile_belongs_to_its_model(written: Written, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "accesses.safetensors"
    profile(written(b.V1, tokenizer=True), text=text, tokens=64, out=out)
    assert profiling.load(out, b.V1)[0].sum() == 64 * 8
    with pytest.raises(InputError, match="counts the slots of another model"):
        profiling.load(out, b.PLUS)
    save_file({"accesses.0": np.zeros(144, np.int64)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: not a profile; make one with"):
        profiling.load(tmp_path / "other.safetensors", b.V1)


def test_what_cannot_be_profiled(written: Written, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dense has no memory layers, so no slots to count"):
        profile(written(b.PLAIN, "dense", tokenizer=True), text=text)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        profile(written(b.V1, "mute"), text=text)


@pytest.mark.parametrize("option", ["out", "plot"])
def test_a_place_that_cannot_be_written_is_told_before_the_model_is_read(option: str, tmp_path: Path) -> None:
    model = tmp_path / "no model"
    model.mkdir()
    with pytest.raises(InputError, match=f"--{option}: {tmp_path}: is a directory"):
        profile(model, **{option: tmp_path})
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=f"--{option}: {tmp_path}/file: no such directory"):
        profile(model, **{option: tmp_path / "file" / "out"})
