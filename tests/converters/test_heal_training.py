"""How healing trains: rates, accumulation, arithmetic, what learns, early stopping, the curve, accelerate."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.heal import schedule
from ultramem_deploy.converters.heal.options import HealOptions
from ultramem_deploy.errors import InputError
from ultramem_deploy.pipeline import heal
from ultramem_deploy.spec import ModelSpec

OPTIONS: dict[str, Any] = {"steps": 6, "batch": 4, "length": 32, "warmup": 2, "lr": 5e-3, "value_lr": 2e-2}


def arrays(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(directory)
    return {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return b.write_text(tmp_path / "text.txt")


@pytest.fixture
def model(written: Written) -> Path:
    return written(b.V1, tokenizer=True)


@pytest.mark.parametrize(
    ("kind", "first", "middle", "last"), [("fixed", 4.0, 4.0, 4.0), ("v1", 10.0, 5.5, 1.0), ("v2", 1.0, 1.0, 1.0)]
)
def test_the_tables_rate_follows_its_schedule(kind: str, first: float, middle: float, last: float) -> None:
    """P1: 10 times the others' rate falling linearly to 1; P2: the others' rate."""
    options = HealOptions(steps=11, lr=0.1, value_lr=0.4, value_schedule=kind)
    found = [schedule.value_rate(options, step) / options.lr for step in (0, 5, 10)]
    np.testing.assert_allclose(found, [first, middle, last])


def test_rates_suit_the_layers(written: Written, model: Path) -> None:
    """Weights of a source, or trained ones, take small steps; layers behind projections of zero large ones."""
    zero = {"memory.0.output.weight": np.zeros((32, 64), np.float32)}
    new = written(b.V1, "new", changes=zero)
    for path, given, expected in (
        (new, {}, (5e-3, 2e-2)),
        (model, {}, (1e-4, 1e-4)),
        (written(b.SIGNED, "signed"), {}, (1e-4, 1e-4)),
        (new, {"lr": 1e-3}, (1e-3, 4e-3)),
        (new, {"lr": 1e-3, "value_lr": 3e-3}, (1e-3, 3e-3)),
    ):
        found = schedule.with_rates(HealOptions(**given), ModelSpec.load(path), Checkpoint.open(path))
        assert (found.lr, found.value_lr) == pytest.approx(expected)


def test_rates_rise_and_fall() -> None:
    options = HealOptions(steps=10, lr=1.0, value_lr=4.0, warmup=4)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "name": name} for p, name in zip(parameters, ("tables", "rest"), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    rates = []
    for step in range(10):
        schedule.set_rates(optimizer, options, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    expected = np.minimum(1, (np.arange(10) + 1) / 4) * (1 - np.arange(10) / 10)
    np.testing.assert_allclose(rates, np.outer(expected, [4, 1]))


def test_accumulated_batches_are_one_batch(model: Path, text: Path, tmp_path: Path) -> None:
    """Two batches of two windows are one of four, up to the order of float32 sums."""
    options = OPTIONS | {"autocast": "off"}
    whole = heal(model, tmp_path / "whole", text=text, **options)
    parts = heal(model, tmp_path / "parts", text=text, **(options | {"batch": 2, "accumulate": 2}))
    assert parts["tokens"] == whole["tokens"] == 6 * 4 * 32
    np.testing.assert_allclose(parts["losses"], whole["losses"], atol=2e-3)


def test_bfloat16_and_float32_learn_alike(model: Path, text: Path, tmp_path: Path) -> None:
    """bfloat16 has 8 bits, and a token near a threshold may take another value: 5% of a loss."""
    for train in ("memory", "all"):
        options = OPTIONS | {"train": train}
        low = heal(model, tmp_path / f"{train}-low", text=text, **options)
        full = heal(model, tmp_path / f"{train}-full", text=text, autocast="off", **options)
        assert low["losses"] != full["losses"]
        np.testing.assert_allclose(low["losses"], full["losses"], rtol=0.05)


@pytest.mark.parametrize(
    ("train", "moved"),
    [
        ("values", {"tables.t.values", "memory.0.output.weight"}),
        ("all", {"model.embed_tokens.weight", "lm_head.weight", "memory.0.query.weight", "tables.t.values"}),
    ],
)
def test_what_learns(model: Path, text: Path, tmp_path: Path, train: str, moved: set[str]) -> None:
    heal(model, tmp_path / "out", text=text, train=train, **OPTIONS)
    before, after = arrays(model), arrays(tmp_path / "out")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    if train == "values":
        assert changed == moved
    else:
        assert changed == before.keys() - {"memory.0.shuffle"}


def test_early_stopping_keeps_the_best(model: Path, text: Path, tmp_path: Path) -> None:
    """Steps far too large make the model worse at once: what is kept is what there was."""
    heal(model, tmp_path / "learnt", text=text, **(OPTIONS | {"steps": 20}))
    model = tmp_path / "learnt"
    wild = OPTIONS | {"steps": 40, "lr": 100.0, "value_lr": 100.0, "warmup": 0}
    receipt = heal(model, tmp_path / "out", text=text, eval_every=2, patience=3, **wild)
    assert receipt["stopped_early"] and receipt["kept_step"] == 0 and len(receipt["losses"]) == 6
    assert [point["step"] for point in receipt["curve"]] == [0, 2, 4, 6]
    assert receipt["perplexity_after"] == receipt["perplexity_before"]
    before, after = arrays(model), arrays(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_best_measurement_is_kept(model: Path, text: Path, tmp_path: Path) -> None:
    receipt = heal(model, tmp_path / "out", text=text, eval_every=2, patience=9, **OPTIONS)
    best = min(receipt["curve"], key=lambda point: point["perplexity"])
    assert (receipt["kept_step"], receipt["perplexity_after"]) == (best["step"], best["perplexity"])
    assert best["step"] > 0 and not receipt["stopped_early"]


def test_an_interruption_changes_nothing_of_early_stopping(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultramem_deploy.converters.heal.stage.SAVE_EVERY", 4)
    options = OPTIONS | {"steps": 30, "lr": 0.1, "value_lr": 0.5, "eval_every": 3, "patience": 2}

    def stop(done: int, total: int, what: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(model, tmp_path / "out", text=text, progress=stop, **options)
    resumed = heal(model, tmp_path / "out", text=text, **options)
    whole = heal(model, tmp_path / "whole", text=text, **options)
    assert resumed == whole | {"resumed_at_step": 5}
    left, right = arrays(tmp_path / "out"), arrays(tmp_path / "whole")
    assert all(np.array_equal(left[name], right[name]) for name in right)


def test_an_interruption_after_an_early_stop_trains_no_further(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the very step that stopped it is there when the weights are written."""
    options = OPTIONS | {"steps": 30, "lr": 0.1, "value_lr": 0.5, "eval_every": 3, "patience": 2}
    monkeypatch.setattr("ultramem_deploy.converters.heal.stage.SAVE_EVERY", 1)
    whole = heal(model, tmp_path / "whole", text=text, **options)
    assert whole["stopped_early"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("ultramem_deploy.converters.heal.stage._write", stop)
        heal(model, tmp_path / "out", text=text, **options)
    resumed = heal(model, tmp_path / "out", text=text, **options)
    assert resumed == whole | {"resumed_at_step": len(whole["losses"]) + 1}


def test_too_small_a_disk_is_refused_before_any_step(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = sum(a.size for name, a in arrays(model).items() if name.startswith(("memory.", "tables.")))
    usage = shutil.disk_usage(tmp_path)
    # float32 weights and two moments, old and new, and the result: the state alone leaves no room for the result.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * 3 * 4 * numbers))
    with pytest.raises(InputError, match="the trained tensors and the state of 'heal' need .* short"):
        heal(model, tmp_path / "out", text=text, **(OPTIONS | {"steps": 26}))
    assert heal(model, tmp_path / "out", text=text, **OPTIONS)["losses"]  # too few steps to save a state


def test_room_for_what_is_copied_is_looked_for_before_any_step(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = sum(a.nbytes for name, a in arrays(model).items() if not name.startswith(("memory.", "tables.")))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=carried))
    with pytest.raises(InputError, match="the trained tensors and the state of 'heal' need .* short"):
        heal(model, tmp_path / "out", text=text, copy=True, **OPTIONS)


def test_a_state_that_cannot_be_written_is_one_line(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("ultramem_deploy.converters.heal.state.save_file", full)
    with pytest.raises(InputError, match=r"cannot be written \(.*No space left .*: free some space, then run"):
        heal(model, tmp_path / "out", text=text, patience=1, **OPTIONS)


def test_the_curve_is_drawn(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "curve.png"
    for _ in range(2):  # also of a receipt that was recorded
        heal(model, tmp_path / "out", text=text, plot=picture, **OPTIONS)
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
    with pytest.raises(InputError, match="--plot: .*no such directory"):
        heal(model, tmp_path / "other", text=text, plot=tmp_path / "nowhere" / "curve.png", **OPTIONS)
    with pytest.raises(InputError, match="--plot: .*is a directory"):
        heal(model, tmp_path / "other", text=text, plot=tmp_path, **OPTIONS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--plot: needs matplotlib: pip install 'ultramem-deploy\[plot\]'"):
        heal(model, tmp_path / "other", text=text, plot=picture, **OPTIONS)
    assert not list(tmp_path.glob("other*"))


def test_accelerate_trains_the_same(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU accelerate runs on the CPU: the same arithmetic, so the same numbers."""
    pytest.importorskip("accelerate")
    own = heal(model, tmp_path / "own", text=text, **OPTIONS)
    theirs = heal(model, tmp_path / "theirs", text=text, device="gpu", **OPTIONS)
    if not torch.cuda.is_available():
        assert theirs == own
    monkeypatch.setitem(sys.modules, "accelerate.state", None)
    with pytest.raises(InputError, match=r"--device gpu: needs accelerate: pip install 'ultramem-deploy\[hf\]'"):
        heal(model, tmp_path / "other", text=text, device="gpu", **OPTIONS)
