"""Greedy generation over any runner, and the verb on top of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import generate
from ultramem_deploy.runtime.generation import Generation, greedy
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.runtime.torch_runner import TorchRunner
from ultramem_deploy.spec import TokenSpec


class Scripted:
    """A runner that answers with given tokens, and notes what it is fed."""

    name, spec, vocab_size = "scripted", None, 10

    def __init__(self, answers: list[int]) -> None:
        self.answers, self.fed = answers, []

    def session(self) -> Scripted:
        return self

    def feed(self, input_ids: np.ndarray) -> np.ndarray:
        self.fed.append(input_ids.tolist())
        return np.eye(10, dtype=np.float32)[[self.answers[len(self.fed) - 1]]]


def test_each_token_is_fed_once() -> None:
    runner, record = Scripted([4, 5, 6]), Generation()
    assert list(greedy(runner, [1, 2], 3, into=record)) == [4, 5, 6] == record.ids
    assert runner.fed == [[[1, 2]], [[4]], [[5]]]
    assert record.decode_steps == 2 and record.prefill_seconds > 0
    assert record.tokens_per_second == pytest.approx(2 / record.decode_seconds)


@pytest.mark.parametrize(("answers", "expected", "steps"), [([9], [], 0), ([4, 9], [4], 1), ([4, 8, 5], [4], 1)])
def test_a_stop_id_ends_it_unseen(answers: list[int], expected: list[int], steps: int) -> None:
    record = Generation()
    assert list(greedy(Scripted(answers), [1], 5, stop=(8, 9), into=record)) == expected
    assert record.decode_steps == steps
    assert (record.tokens_per_second > 0) == (steps > 0)


def test_greedy_is_the_models_argmax(written: Written) -> None:
    path = written(b.V2)
    found = list(greedy(TorchRunner(path), [3, 4, 5], 12))
    model, ids = load(path), [3, 4, 5]
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert found == ids[3:]


def test_the_verb(written: Written) -> None:
    path = written(b.V1, tokenizer=True)
    pieces: list[str] = []
    found = generate(path, prompt="the table", max_new_tokens=9, on_text=pieces.append)
    assert found["prompt"] == "the table" and found["prompt_tokens"] == 9 and found["runtime"] == "torch"
    ids = Tokenizer(path).encode("the table")
    assert found["ids"] == list(greedy(TorchRunner(path), ids, 9))
    assert "".join(pieces) == found["text"] == Tokenizer(path).decode(found["ids"])
    assert generate(path, prompt="the table", max_new_tokens=9) | {"prefill_seconds": 0} == found | {
        "prefill_seconds": 0,
        **{name: pytest.approx(found[name], abs=1e9) for name in ("decode_seconds", "tokens_per_second")},
    }


def test_the_verb_stops_at_the_models_own_ids(written: Written) -> None:
    path = written(b.V1, tokenizer=True)
    free = generate(path, prompt="a slot", max_new_tokens=8)["ids"]
    stop = free[3]
    path = written(replace(b.V1, tokens=TokenSpec(eos=(60, stop))), "stopping", tokenizer=True)
    assert generate(path, prompt="a slot", max_new_tokens=8)["ids"] == free[: free.index(stop)]


def test_text_that_ends_within_a_character_is_shown(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens a character; the last one never comes."""
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "é" * (len(ids) // 3) + "\ufffd" * (len(ids) % 3 > 0))
    pieces: list[str] = []
    found = generate(written(b.V1, tokenizer=True), prompt="a", max_new_tokens=7, on_text=pieces.append)
    assert pieces == ["é", "é", "\ufffd"] and found["text"] == "éé\ufffd"


def test_refusals(written: Written) -> None:
    path = written(b.V1, tokenizer=True)
    with pytest.raises(InputError, match="--max-new-tokens: must be positive, found 0"):
        generate(path, prompt="a", max_new_tokens=0)
    with pytest.raises(InputError, match="--prompt: holds no tokens"):
        generate(path, prompt="")


def test_no_tokenizer(written: Written) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        generate(written(b.V1), prompt="a")
