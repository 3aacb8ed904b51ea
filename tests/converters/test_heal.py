"""Healing: the memory learns the text, nothing else changes, and an interruption changes nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.checkpoint import Checkpoint, numpy_dtype
from ultramem_deploy.converters.heal import stage, train
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import fold, heal, upcycle, verify
from ultramem_deploy.spec import ModelSpec

OPTIONS: dict[str, Any] = {"steps": 12, "batch": 4, "length": 32, "warmup": 2, "lr": 5e-3, "value_lr": 2e-2}
SIZES: dict[str, Any] = {"knum": 8, "key_width": 8, "value_width": 16, "top_m": 4, "paths": "0:0/1:1"}


def arrays(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(directory)
    return {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}


def with_projections(source: Path, out: Path) -> Path:
    """The model with output projections that let gradients through to the keys."""
    changes = arrays(source)
    rng = np.random.default_rng(0)
    for name in ("memory.0.output.weight", "memory.1.output.weight"):
        changes[name] = rng.standard_normal(changes[name].shape).astype(np.float32)
    return b.write_checkpoint(out, ModelSpec.load(source), changes=changes, tokenizer=True)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return b.write_text(tmp_path / "text.txt")


@pytest.fixture
def source(written: Written, tmp_path: Path) -> Path:
    """A dense model whose logits are small, upcycled: the memory has much to learn."""
    head = b.random_tensors(b.PLAIN)["lm_head.weight"]
    dense = written(b.PLAIN, "dense", tokenizer=True, changes={"lm_head.weight": head / 4})
    upcycle(dense, tmp_path / "source", **SIZES)
    return tmp_path / "source"


def test_the_text_is_learnt_and_the_dense_model_stays(source: Path, text: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    options = OPTIONS | {"steps": 30, "lr": 2e-2}
    receipt = heal(source, out, text=text, progress=lambda done, of, what: seen.append((done, of)), **options)
    assert receipt["perplexity_after"] < 0.8 * receipt["perplexity_before"]
    losses = receipt["losses"]
    assert len(losses) == 30 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2
    assert seen == [(step, 30) for step in range(1, 31)]
    before, after = arrays(source), arrays(out)
    assert before.keys() == after.keys()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("model.", "lm_head.")) or name.endswith(".shuffle")}
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    for shard in source.glob("model-decoder*.safetensors"):
        assert shard.samefile(out / shard.name)
    assert heal(source, out, text=text, **options) == receipt | {"up_to_date": True}, "the recorded receipt"
    found = verify(source, out, text=text, tokens=200, check=False)
    assert found["perplexity_candidate"] < 0.8 * found["perplexity_reference"]
    assert not list(out.glob("resume*"))


def test_factors_stay_the_rank_one_pair_of_the_core(source: Path, text: Path, tmp_path: Path) -> None:
    changes = arrays(source)
    for name in ("memory.0.u", "memory.0.v"):
        changes[name] = -changes[name]
    flipped = b.write_checkpoint(tmp_path / "flipped", ModelSpec.load(source), changes=changes, tokenizer=True)
    heal(flipped, tmp_path / "out", text=text, **OPTIONS)
    before, after = changes, arrays(tmp_path / "out")
    for index in (0, 1):
        core, u, v = (after[f"memory.{index}.{name}"].astype(np.float64) for name in ("core", "u", "v"))
        for one, left, right in zip(core.sum(0), u, v, strict=True):
            power = np.linalg.norm(one, 2)
            np.testing.assert_allclose(one @ right, power * left, atol=1e-5)
            np.testing.assert_allclose(one.T @ left, power * right, atol=1e-5)
        assert ((u * before[f"memory.{index}.u"]).sum(1) > 0.9).all(), "the sign is the one it had"
    assert (after["memory.0.u"].sum(1) < 0).all() and (after["memory.1.u"].sum(1) > 0).all()


@pytest.mark.parametrize("what", ["memory", "keys"])
def test_an_interruption_changes_nothing(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY", 3)
    if what == "keys":
        source = with_projections(source, tmp_path / "start")
    options = OPTIONS | {"train": what}
    trained: list[int] = []

    def stop(done: int, total: int, what: str) -> None:
        trained.append(done)
        if done == 8:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        heal(source, out, text=text, progress=stop, **options)
    assert not out.exists() and trained == list(range(1, 9))
    trained.clear()
    resumed = heal(source, out, text=text, progress=lambda done, of, what: trained.append(done), **options)
    assert trained == list(range(7, 13)), "steps 1 to 6 were saved"
    whole = heal(source, tmp_path / "whole", text=text, **options)
    assert resumed == whole | {"resumed_at_step": 7}
    assert heal(source, out, text=text, **options) == whole | {"up_to_date": True}, "the receipt does not tell"
    left, right = arrays(out), arrays(tmp_path / "whole")
    assert all(np.array_equal(left[name], right[name]) for name in right)


def test_other_options_start_anew(source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SAVE_EVERY", 2)

    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(source, tmp_path / "out", text=text, progress=stop, **OPTIONS)
    steps: list[int] = []
    result = heal(source, tmp_path / "out", text=text, progress=lambda done, of, what: steps.append(done),
                  **(OPTIONS | {"lr": 1e-4}))  # fmt: skip
    assert steps[0] == 1 and result["restarted"] == "the options (lr) changed"


def test_another_text_of_the_same_name_is_another_run(source: Path, text: Path, tmp_path: Path) -> None:
    short = OPTIONS | {"steps": 2}
    first = heal(source, tmp_path / "out", text=text, **short)
    b.write_text(text, seed=5)
    with pytest.raises(InputError, match="text_sha256"):
        heal(source, tmp_path / "out", text=text, **short)
    second = heal(source, tmp_path / "out", text=text, overwrite=True, **short)
    assert first["losses"] != second["losses"]


def test_keys_alone(source: Path, text: Path, tmp_path: Path) -> None:
    start = with_projections(source, tmp_path / "start")
    changes = arrays(start)
    heal(start, tmp_path / "out", text=text, train="keys", **OPTIONS)
    after = arrays(tmp_path / "out")
    moved = {name.split(".", 2)[2] for name in after if not np.array_equal(changes[name], after[name])}
    assert moved == {"row_keys", "col_keys", "query.weight", "query_norm.weight", "key_norm.weight", "core", "u", "v"}


@pytest.mark.parametrize("kind", ["v2", "memory+", "folded", "bfloat16"])
def test_every_kind_heals(written: Written, text: Path, tmp_path: Path, kind: str) -> None:
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    path = written(b.PLUS if kind == "memory+" else b.V2, tokenizer=True, dtype=dtype)
    if kind == "folded":
        fold(path, tmp_path / "folded")
        path = tmp_path / "folded"
    receipt = heal(path, tmp_path / "out", text=text, **OPTIONS)
    assert receipt["perplexity_after"] < receipt["perplexity_before"]
    tensors = arrays(tmp_path / "out")
    assert tensors["memory.0.query.weight"].dtype == numpy_dtype(dtype)


BAD = {
    "steps": 0,
    "batch": -1,
    "length": 1,
    "lr": -1.0,
    "value_lr": float("nan"),
    "warmup": -1,
    "seed": -1,
    "train": "everything",
    "accumulate": 0,
    "value_schedule": "v3",
    "loss": "mse",
    "regression": 1.5,
    "retain_batch": 0,
    "retain_weight": 0.0,
    "autocast": "fp8",
    "device": "tpu",
    "eval_every": 0,
    "patience": -1,
}


@pytest.mark.parametrize("option", BAD)
def test_options(written: Written, tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}: "):
        heal(written(b.V1, tokenizer=True), tmp_path / "out", **{option: BAD[option]})
    assert not list(tmp_path.glob("out*"))


def test_longer_than_the_positions(written: Written, tmp_path: Path) -> None:
    short = replace(b.V1, decoder=b.decoder(max_positions=16))
    with pytest.raises(InputError, match=r"--length: expected 2\.\.16, found 17"):
        heal(written(short, tokenizer=True), tmp_path / "out", length=17)


def test_refusals(written: Written, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no memory layers to train; run upcycle first"):
        heal(written(b.PLAIN, "dense", tokenizer=True), tmp_path / "out")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        heal(written(b.V1, "mute"), tmp_path / "out", text=text)
    with pytest.raises(InputError, match="the text holds"):
        heal(written(b.V1, "short", tokenizer=True), tmp_path / "out", text=b.write_text(text, documents=10), steps=1)
    with pytest.raises(InputError, match="unknown option 'rate'"):
        heal(tmp_path / "dense", tmp_path / "out", rate=1)


def test_divergence_is_an_error(written: Written, text: Path, tmp_path: Path) -> None:
    nan = np.full(32, np.nan, np.float32)
    path = written(b.V1, tokenizer=True, changes={"model.norm.weight": nan})
    with pytest.raises(CheckFailed, match="the loss of step 1 is nan: lower --lr"):
        heal(path, tmp_path / "out", text=text, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_keys_behind_projections_that_are_zero_are_refused(source: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--train keys: memory\.0\.output\.weight.*heal with --train memory first"):
        heal(source, tmp_path / "out", text=text, train="keys", **OPTIONS)
    assert not list(tmp_path.glob("out*"))


def test_divergence_in_the_last_step_is_an_error(written: Written, text: Path, tmp_path: Path) -> None:
    half = written(b.V1, "half", tokenizer=True, dtype="float16")
    options = OPTIONS | {"steps": 1, "warmup": 0, "value_lr": 1e6}
    with pytest.raises(
        CheckFailed, match=r"tables\.t\.values is not finite as float16 after the last step: lower --lr"
    ):
        heal(half, tmp_path / "out", text=text, **options)
    wild = OPTIONS | {"steps": 1, "warmup": 0, "value_lr": 1e25, "lr": 1e25}
    with pytest.raises(CheckFailed, match=r"not finite.*: lower --lr"):
        heal(written(b.V1, "v1", tokenizer=True), tmp_path / "out", text=text, **wild)
    assert not (tmp_path / "out").exists()


def test_a_core_that_is_not_finite_is_divergence(source: Path) -> None:
    model = load(source)
    core = model.memory_layers[0].core.requires_grad_()
    core.data = torch.full_like(core, torch.nan)
    with pytest.raises(CheckFailed, match="a core is not finite: lower --lr"):
        train.follow_cores(model)


def test_logits_that_are_all_zero_are_an_error(source: Path, text: Path, tmp_path: Path) -> None:
    changes = arrays(source)
    changes["lm_head.weight"] = np.zeros_like(changes["lm_head.weight"])
    mute = b.write_checkpoint(tmp_path / "mute", ModelSpec.load(source), changes=changes, tokenizer=True)
    with pytest.raises(CheckFailed, match="every logit is zero after the last step"):
        heal(mute, tmp_path / "out", text=text, **(OPTIONS | {"steps": 1}))
