"""Comparing two checkpoints: what passes, what fails, what is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.pipeline import convert, verify
from ultramem_deploy.runtime.base import LayerTrace, Trace
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.tally import Tally, fallen_tie, first_tokens, kept_tokens
from ultramem_deploy.verdict import VERDICT_NAME

PAIR = replace(b.V1, memory=(b.ultramem_v1(), b.ultramem_v1(read_block=0, write_block=0)))


def pair(written: Written, spec: ModelSpec = PAIR, **changed: np.ndarray) -> tuple[Path, Path]:
    """Two checkpoints of which the second has tensors changed; "__" stands for a dot."""
    changes = {name.replace("__", "."): array for name, array in changed.items()}
    return written(spec, "left"), written(spec, "right", changes=changes)


def test_identical_checkpoints_pass_with_no_error(written: Written) -> None:
    found = verify(*pair(written), tokens=300)
    assert found["passed"] is True
    exact = ("max_abs_logit_error", "max_abs_logit_error_all_tokens", "mean_kl", "max_memory_error")
    assert [found[name] for name in exact] == [0.0] * 4
    assert found["top1_agreement"] == found["index_agreement"] == 1.0
    assert found["perplexity_reference"] == found["perplexity_candidate"] > 1
    assert (found["tokens"], found["compared_memory_layers"]) == (300, 2)
    assert found["reference_runtime"] == found["candidate_runtime"] == "torch"


def test_a_changed_weight_fails_and_names_the_worst(written: Written) -> None:
    head = b.random_tensors(PAIR)["lm_head.weight"].copy()
    head[17] += 0.5
    left, right = pair(written, lm_head__weight=head)
    with pytest.raises(CheckFailed, match=r"verify: right differs from left: .*logits\[17\] at token \d+"):
        verify(left, right, tokens=40)
    found = verify(left, right, tokens=40, check=False)
    assert found["passed"] is False
    worst = found["worst"]
    assert worst["layer"] is None and worst["tensor"] == "logits[17]"
    assert abs(worst["reference"] - worst["candidate"]) == pytest.approx(found["max_abs_logit_error"], rel=1e-6)
    assert found["max_memory_error"] == 0.0
    generous = verify(left, right, tokens=40, max_abs=found["max_abs_logit_error"], kl=found["mean_kl"])
    assert generous["passed"] is True
    with pytest.raises(CheckFailed):
        verify(left, right, tokens=40, max_abs=found["max_abs_logit_error"], kl=found["mean_kl"] * 0.99)


def test_a_changed_memory_names_the_layer(written: Written) -> None:
    output = b.random_tensors(PAIR)["memory.1.output.weight"].copy()
    output[5] += 40
    head = b.random_tensors(PAIR)["lm_head.weight"] / 1000
    left = written(PAIR, "left", changes={"lm_head.weight": head})
    right = written(PAIR, "right", changes={"lm_head.weight": head, "memory.1.output.weight": output})
    found = verify(left, right, tokens=40, check=False)
    assert found["worst"]["layer"] == 1
    assert found["worst"]["tensor"] == "memory.1.output[5]"
    assert found["max_memory_error"] > 1


def test_nan_fails(written: Written) -> None:
    norm = np.full(32, np.nan, np.float32)
    left, right = pair(written, model__norm__weight=norm)
    for one, other in ((left, right), (right, left), (right, right)):
        with pytest.raises(CheckFailed):
            verify(one, other, tokens=30)
    found = verify(left, right, tokens=30, check=False)
    assert found["passed"] is False
    assert found["max_abs_logit_error"] is None and found["mean_kl"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_flipped_signs_choose_other_slots(written: Written) -> None:
    u = -b.random_tensors(PAIR)["memory.0.u"]
    found = verify(*pair(written, memory__0__u=u), tokens=60, check=False)
    assert found["index_agreement"] < 0.5
    assert found["passed"] is False


def test_other_vocabularies_cannot_be_compared(written: Written) -> None:
    left, right = written(b.V1, "left"), written(replace(b.V1, decoder=b.decoder(vocab_size=62)), "right")
    with pytest.raises(InputError, match="left has 61 logits a token, right 62"):
        verify(left, right)


def test_a_model_of_another_width_has_no_layers_in_common(written: Written) -> None:
    left, right = written(b.V1, "left"), written(replace(b.V1, decoder=b.decoder(hidden_size=48)), "right")
    found = verify(left, right, tokens=20, check=False)
    assert found["compared_memory_layers"] == 0 and found["passed"] is False


def test_without_a_tokenizer_there_is_no_text(written: Written, tmp_path: Path) -> None:
    left, right = pair(written)
    with pytest.raises(InputError, match=r"--text: neither model has a tokenizer\.json"):
        verify(left, right, text=b.write_text(tmp_path / "text.txt"))


def test_text_is_read_with_the_tokenizer(written: Written, tmp_path: Path) -> None:
    left, right = written(b.V1, "left", tokenizer=True), written(b.V1, "right", tokenizer=True)
    text = b.write_text(tmp_path / "text.txt")
    first = verify(left, right, text=text, tokens=100)
    other = verify(left, right, text=b.write_text(tmp_path / "other.txt", seed=1), tokens=100)
    assert first["tokens"] == 100 and first["perplexity_reference"] != other["perplexity_reference"]
    assert verify(left, right, text=text, tokens=100_000)["tokens"] < 100_000, "as many as the text holds"
    short = tmp_path / "short.txt"
    short.write_text("")
    with pytest.raises(InputError, match="at least 2 are needed"):
        verify(left, right, text=short)


def test_a_source_that_is_not_whole_is_no_reference(tmp_path: Path) -> None:
    """transformers fills what a file lacks with random numbers, or fails with a traceback: both are one line here."""
    source, canonical = tmp_path / "source", tmp_path / "canonical"
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(source)
    convert(source, canonical, copy=True)
    file = source / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    assert verify(source, canonical, tokens=20)["max_abs_logit_error"] < 1e-5
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="source: transformers cannot load it"):
        verify(source, canonical, tokens=20)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, file, {"format": "pt"})
    with pytest.raises(InputError, match=f"1 missing tensors, {name}"):
        verify(source, canonical, tokens=20)
    save_file(tensors | {name: np.zeros((50, 32), np.float32)}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"source: "):
        verify(source, canonical, tokens=20)


def test_what_is_no_model_is_no_reference(tmp_path: Path) -> None:
    """transformers would look for a model in the file, or on the network."""
    right = tmp_path / "right"
    for name, content in {"config.json": b"{}", "model.bin": b"\x80\x02", "text": b"x"}.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"{file}: expected a model directory or a .gguf file"):
            verify(file, right, tokens=20)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=f"{empty}: holds neither config.json nor a .gguf file"):
        verify(empty, right, tokens=20)
    (empty / "config.json").write_text('{"model_type": "llama"}')
    (empty / "pytorch_model.bin").write_bytes(b"{")
    with pytest.raises(InputError, match="empty: transformers cannot load it"):
        verify(empty, right, tokens=20)


def test_other_slots_fail_even_where_the_outputs_are_zero(written: Written) -> None:
    silent = {n: np.zeros_like(t) for n, t in b.random_tensors(PAIR).items() if n.endswith("output.weight")}
    other = {n: -t for n, t in b.random_tensors(PAIR).items() if n.endswith((".u", ".v"))}
    left = written(PAIR, "left", changes=silent)
    assert verify(left, written(PAIR, "same", changes=silent), tokens=40)["passed"]
    with pytest.raises(CheckFailed, match="memory layers chose the same slots in"):
        verify(left, written(PAIR, "right", changes=silent | other), tokens=40)


def test_a_tokenizer_of_another_model_is_refused(written: Written, tmp_path: Path) -> None:
    small = replace(b.V1, decoder=b.decoder(vocab_size=9))
    left, right = written(small, "left"), written(small, "right")
    b.write_tokenizer(right)
    with pytest.raises(InputError, match=r"right/tokenizer\.json: gives token \d+, the model has 9"):
        verify(left, right, text=b.write_text(tmp_path / "text.txt"), tokens=50)


@pytest.mark.parametrize(("tokens", "compared"), [(2, 2), (256, 256), (257, 256), (258, 258), (512, 512)])
def test_tokens(written: Written, tokens: int, compared: int) -> None:
    assert verify(*pair(written, b.PLAIN), tokens=tokens)["tokens"] == compared


def test_windows_end_where_positions_do(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ModelSpec(b.decoder(max_positions=20))
    fed: list[int] = []
    from ultramem_deploy.runtime.torch_runner import TorchRunner

    trace = TorchRunner.trace
    monkeypatch.setattr(TorchRunner, "trace", lambda self, ids: fed.append(ids.shape[1]) or trace(self, ids))
    assert verify(*pair(written, short), tokens=50)["tokens"] == 50
    assert fed == [20, 20, 20, 20, 10, 10]


def test_one_token_predicts_nothing(written: Written) -> None:
    with pytest.raises(InputError, match="--tokens: at least 2"):
        verify(*pair(written), tokens=1)


@pytest.mark.parametrize("limit", [{"max_abs": -1.0}, {"kl": float("nan")}])
def test_limits_that_nothing_passes_are_no_verdict(written: Written, limit: dict[str, float]) -> None:
    model = written(b.V1)
    with pytest.raises(InputError, match="expected 0 or more, found (-1.0|nan)"):
        verify(model, model, tokens=4, **limit)
    assert not (model / VERDICT_NAME).exists()


def test_kept_tokens() -> None:
    margins = np.ones(500)
    assert kept_tokens(margins).all()
    margins[[3, 30]] = 1e-6, 1e-5
    margins[40] = 1.1e-5
    assert np.flatnonzero(~kept_tokens(margins)).tolist() == [3, 30]
    margins[100:120] = np.linspace(9e-6, 1e-6, 20)
    dropped = np.flatnonzero(~kept_tokens(margins)).tolist()
    assert dropped == [3, 116, 117, 118, 119], "1% of 500: the closest of the 22 ties"
    assert kept_tokens(np.zeros(99)).all(), "one token would be more than 1%"
    assert kept_tokens(np.array([np.nan] * 50 + [np.inf] * 50)).all(), "NaN is no tie"


def one_layer_trace(logits: np.ndarray, **fields: Any) -> Trace:
    return Trace(logits[None], [LayerTrace(**fields)])


def test_the_tally_leaves_out_ties_and_shows_all_tokens_beside() -> None:
    rng = np.random.default_rng(0)
    logits, output = rng.standard_normal((200, 7)).astype(np.float32), rng.standard_normal((200, 4)).astype(np.float32)
    indices, margin = rng.integers(0, 50, (200, 6)), np.ones(200, np.float32)
    other, moved, other_indices = logits.copy(), output.copy(), indices.copy()
    margin[50], other[50], other_indices[50] = 1e-6, other[50] + 3, 99
    other[60, 2] += 0.25
    moved[70, 1] -= 0.125
    other_indices[80, :3] = 99
    tally = Tally()
    for part in (slice(0, 75), slice(75, 200)):
        left = one_layer_trace(logits[part], indices=indices[part], output=output[part], margin=margin[part])
        right = one_layer_trace(other[part], indices=other_indices[part], output=moved[part], margin=None)
        tally.add(left, right, np.zeros(len(logits[part]), np.int64))
    found = tally.result()
    assert found.excluded_tokens == 1 and found.tokens == 200
    assert found.max_abs_logit_error == 0.25
    assert found.max_abs_logit_error_all_tokens == pytest.approx(3, rel=1e-6)
    assert (found.worst.token, found.worst.tensor) == (60, "logits[2]")
    assert found.max_memory_error == 0.125
    assert found.index_agreement == pytest.approx(1 - 0.5 / 199)


def test_figures_against_their_formulas() -> None:
    rng = np.random.default_rng(1)
    left, right = (rng.standard_normal((30, 9)).astype(np.float32) for _ in range(2))
    ids = rng.integers(0, 9, 30)
    tally = Tally()
    tally.add(Trace(left[None]), Trace(right[None]), ids)
    found = tally.result()
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (left, right))
    assert found.mean_kl == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found.perplexity_reference == pytest.approx(np.exp(-np.log(p[np.arange(29), ids[1:]]).mean()))
    assert found.perplexity_candidate == pytest.approx(np.exp(-np.log(q[np.arange(29), ids[1:]]).mean()))
    assert found.top1_agreement == (left.argmax(1) == right.argmax(1)).mean()
    assert found.max_abs_logit_error == np.abs(left - right).max()
    assert (found.index_agreement, found.max_memory_error, found.compared_memory_layers) == (1.0, 0.0, 0)


def test_a_tie_that_falls_differently_ends_its_piece() -> None:
    """Later tokens attend to it: they would differ for its sake."""

    def trace(indices: list[list[int]], margins: list[float]) -> Trace:
        layer = LayerTrace(np.array(indices), np.zeros((len(indices), 3), np.float32), np.array(margins, np.float32))
        return Trace(np.zeros((1, len(indices), 5), np.float32), [layer])

    margins = [1.0, 1e-6, 1.0, 1e-6]
    left = trace([[1, 2], [3, 4], [5, 6], [7, 8]], margins)
    assert fallen_tie(left, trace([[2, 1], [4, 3], [5, 6], [8, 7]], margins)) is None, "the order does not matter"
    assert fallen_tie(left, trace([[1, 2], [3, 4], [5, 9], [7, 8]], margins)) is None, "no tie: an error, not a fall"
    assert fallen_tie(left, trace([[1, 2], [3, 9], [5, 6], [7, 9]], margins)) == 1
    cut = first_tokens(left, 2)
    assert cut.logits.shape == (1, 2, 5) and cut.layers[0].indices.tolist() == [[1, 2], [3, 4]]
    assert cut.layers[0].margin is not None and len(cut.layers[0].margin) == 2
