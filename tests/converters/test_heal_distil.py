"""Healing against a source model: regression, divergence, a retained text; sources in any form."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import ultramem_deploy
from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.converters.heal import objective
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import UltraMemModel, load
from ultramem_deploy.pipeline import heal, upcycle, verify
from ultramem_deploy.spec import ModelSpec

ROOT = Path(ultramem_deploy.__file__).parents[1]
OPTIONS: dict[str, Any] = {"steps": 16, "batch": 4, "length": 32, "warmup": 2, "lr": 1e-3, "value_lr": 4e-3}
FITTING: dict[str, Any] = {"calibration_tokens": 600, "held_out_tokens": 200}
SIZES: dict[str, Any] = {"knum": 8, "key_width": 8, "value_width": 16, "top_m": 4, "paths": "0:0/1:1"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return b.write_text(tmp_path / "text.txt")


@pytest.fixture
def dense(written: Written) -> Path:
    return written(b.PLAIN, "dense", tokenizer=True)


@pytest.fixture
def halved(dense: Path, text: Path, tmp_path: Path) -> Path:
    """Memories that use a quarter of the FFNs' neurons: there is something to make up for."""
    upcycle(dense, tmp_path / "halved", method="neurons", text=text, active=0.25, retrieve=1.0, **FITTING)
    return tmp_path / "halved"


def kl(reference: Path, candidate: Path, text: Path) -> float:
    return float(verify(reference, candidate, text=text, tokens=200, check=False)["mean_kl"])


def test_distillation_brings_the_predictions_back(dense: Path, halved: Path, text: Path, tmp_path: Path) -> None:
    receipt = heal(halved, tmp_path / "out", text=text, distill=dense, **OPTIONS)
    assert receipt["regression_steps"] == 4, "a quarter of the steps"
    assert kl(dense, tmp_path / "out", text) < 0.7 * kl(dense, halved, text)


def test_regression_alone_brings_the_layers_back(dense: Path, halved: Path, text: Path, tmp_path: Path) -> None:
    receipt = heal(halved, tmp_path / "out", text=text, distill=dense, regression=1.0, **OPTIONS)
    assert receipt["regression_steps"] == OPTIONS["steps"]
    assert np.mean(receipt["losses"][-3:]) < 0.9 * np.mean(receipt["losses"][:3])
    assert kl(dense, tmp_path / "out", text) < kl(dense, halved, text)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The weights of `dense` as transformers saves them."""
    decoder, tensors = b.DECODER, b.random_tensors(b.PLAIN)
    config = transformers.LlamaConfig(
        vocab_size=decoder.vocab_size, hidden_size=decoder.hidden_size, intermediate_size=decoder.intermediate_size,
        num_hidden_layers=decoder.num_layers, num_attention_heads=decoder.num_heads, head_dim=decoder.head_dim,
        num_key_value_heads=decoder.num_kv_heads, max_position_embeddings=decoder.max_positions,
        rms_norm_eps=decoder.norm.eps, rope_theta=decoder.rope.theta,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    model.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def test_a_source_may_be_a_foreign_directory(
    halved: Path, dense: Path, foreign: Path, text: Path, tmp_path: Path
) -> None:
    """The same weights teach the same."""
    own = heal(halved, tmp_path / "own", text=text, distill=dense, **OPTIONS)
    assert heal(halved, tmp_path / "out", text=text, distill=foreign, **OPTIONS) == own
    again = heal(halved, tmp_path / "out", text=text, distill=foreign, **OPTIONS)
    assert again["up_to_date"] and not list(tmp_path.glob(".out*"))


KILLED = """
import os, signal, sys
from ultramem_deploy.converters.heal import stage
stage.heal_checkpoint = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from ultramem_deploy.pipeline import heal
heal(sys.argv[1], sys.argv[2], distill=sys.argv[3])
"""


def killed(src: Path, out: Path, distill: Path) -> Path:
    """What a run leaves that is killed once its source is converted: the converted source."""
    ended = subprocess.run([sys.executable, "-c", KILLED, src, out, distill], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = out.parent.glob(f".{out.name}*/*/provenance.json")
    return left.parent


def test_a_killed_run_leaves_nothing_that_the_next_does_not_take_up(
    halved: Path, foreign: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed(halved, tmp_path / "out", foreign)
    converted, seen = (left / "provenance.json").stat().st_ino, []

    def healing(*_: object, distil: Path, **__: object) -> dict[str, Any]:
        seen.append((distil / "provenance.json").stat().st_ino)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("ultramem_deploy.converters.heal.stage.heal_checkpoint", healing)
        heal(halved, tmp_path / "out", distill=foreign)
        assert seen == [converted] and not list(tmp_path.glob(".out*"))
        killed(halved, tmp_path / "out", foreign)
        other = foreign.rename(tmp_path / "renamed")
        heal(halved, tmp_path / "out", distill=other)
    assert len(seen) == 2 and not list(tmp_path.glob(".out*"))


def test_two_runs_at_once_do_not_share_a_converted_source(halved: Path, foreign: Path, tmp_path: Path) -> None:
    left = killed(halved, tmp_path / "out", foreign)
    with open(left.parent / ".lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run .* is writing it"):
            heal(halved, tmp_path / "out", distill=foreign)
    assert left.is_dir()


def test_identity_has_nothing_to_regress_to(dense: Path, text: Path, tmp_path: Path) -> None:
    upcycle(dense, tmp_path / "upcycled", **SIZES)
    receipt = heal(tmp_path / "upcycled", tmp_path / "out", text=text, distill=dense, loss="lm", **OPTIONS)
    assert receipt["regression_steps"] == 0
    assert receipt["perplexity_after"] < receipt["perplexity_before"]


def test_a_retained_text_keeps_its_predictions(dense: Path, text: Path, tmp_path: Path) -> None:
    """One text is learnt with and without the other retained; the other's predictions then move less."""
    upcycle(dense, tmp_path / "upcycled", **SIZES)
    other = tmp_path / "other.txt"
    words = np.random.default_rng(1).permutation(list("zyxwvut jklm"))
    rng = np.random.default_rng(2)
    documents = ["".join(rng.choice(words, 400)) for _ in range(60)]
    other.write_text("\f".join(documents), encoding="utf-8")
    options = OPTIONS | {"lr": 1e-2, "value_lr": 2e-2, "steps": 24}
    drift = {}
    for name, more in (("free", {}), ("held", {"distill": dense, "retain": other, "retain_weight": 4.0})):
        receipt = heal(tmp_path / "upcycled", tmp_path / name, text=text, **options, **more)
        assert receipt["perplexity_after"] < 0.9 * receipt["perplexity_before"], "the text is learnt"
        drift[name] = kl(dense, tmp_path / name, other)
    assert drift["held"] < 0.5 * drift["free"]
    assert {"retained_before", "retained_after"} <= receipt.keys() and "retained" in receipt["curve"][0]
    assert receipt["tokens"] == 24 * (4 + 1) * 32, "what is retained counts"


def test_regression_is_the_error_of_each_layer(dense: Path, halved: Path) -> None:
    """Against the memory layers run alone on what the dense model's FFNs read, float64."""
    source, model = load(dense), load(halved)
    ids = torch.arange(40)[None] % b.DECODER.vocab_size
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        block.mlp.register_forward_hook(lambda _, given, out: seen.append((given[0][0], out[0])))
        for block in source.model.layers
    ]
    residuals: list[torch.Tensor] = []
    hooks += [
        block.register_forward_hook(lambda _, given, out: residuals.append((out[0] - given[0])[0].double()))
        for block in source.model.layers
    ]
    source(ids)
    for hook in hooks:
        hook.remove()
    expected = []
    for index, (layer, (read, wanted)) in enumerate(zip(model.memory_layers, seen, strict=True)):
        found = layer(read, model.tables[layer.spec.table])
        expected.append((found.double() - wanted.double()).square().sum() / residuals[index].square().sum())
    assert float(objective.regression(model, source, ids)) == pytest.approx(float(sum(expected)) / 2, rel=1e-4)


def test_divergence_is_kl_of_the_source_from_the_model(dense: Path, halved: Path) -> None:
    ids = torch.arange(30).view(2, 15)
    source, model = load(dense), load(halved)

    def log_probabilities(one: UltraMemModel) -> np.ndarray:
        logits = one(ids).double().numpy()
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = log_probabilities(source), log_probabilities(model)
    expected = (np.exp(p) * (p - q)).sum(-1).mean()
    assert float(objective.divergence(model, source, ids)) == pytest.approx(expected, rel=1e-4)


def test_spans_join_paths_that_overlap() -> None:
    decoder = b.decoder(num_layers=8)

    def spec(*paths: tuple[int, int]) -> ModelSpec:
        return ModelSpec(decoder, tuple(b.ultramem_v1(read_block=r, write_block=w) for r, w in paths), b.V1.tables)

    assert objective.spans(spec((1, 2), (4, 6)), ModelSpec(decoder)) == [(1, 3), (4, 7)]
    assert objective.spans(spec((1, 2), (4, 6)), spec((2, 4))) == [(1, 7)]
    assert objective.spans(spec((3, 3)), spec((3, 3), (0, 1))) == [(0, 2), (3, 4)]


def test_refusals(dense: Path, halved: Path, text: Path, written: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"--loss: kl needs the model to compare with: give it by --distill"):
        heal(halved, out, text=text, loss="kl")
    with pytest.raises(InputError, match=r"--retain: needs the model to compare with"):
        heal(halved, out, text=text, retain=text)
    other = written(ModelSpec(b.decoder(vocab_size=71)), "other", tokenizer=True)
    with pytest.raises(InputError, match=r"--distill: other: vocab_size: expected 61 as the model has, found 71"):
        heal(halved, out, text=text, distill=other)
    shallow = written(ModelSpec(b.decoder(num_layers=1)), "shallow", tokenizer=True)
    with pytest.raises(InputError, match=r"num_layers: expected 2 .*, found 1; --regression 0 distils predictions"):
        heal(halved, out, text=text, distill=shallow)
    with pytest.raises(InputError, match="expected a model directory"):
        heal(halved, out, text=text, distill=tmp_path / "nowhere")
    assert not list(tmp_path.glob("out*"))
