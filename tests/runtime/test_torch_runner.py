"""Running a canonical checkpoint in PyTorch: chunks, sessions, traces and selection margins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import builders as b
from tests.conftest import Written
from tests.formulas_memory import memory_layer
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import UltraMemModel, load
from ultramem_deploy.runtime.opening import open_runner
from ultramem_deploy.runtime.torch_runner import TorchRunner, selection_margin
from ultramem_deploy.spec import ModelSpec

CHUNK = "ultramem_deploy.runtime.torch_runner.prefill_chunk"


def token_ids(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 61, (rows, length))


def test_logits_are_the_models(written: Written) -> None:
    path = written(b.V2)
    ids = token_ids(3, 20)
    expected = load(path)(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(TorchRunner(path).logits(ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_chunks_equal_the_whole(written: Written, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    runner, ids = TorchRunner(written(b.V1)), token_ids(rows, 23)
    whole = runner.logits(ids)
    fed: list[tuple[int, ...]] = []
    hook = runner.model.model.embed_tokens.register_forward_pre_hook(lambda _, args: fed.append(tuple(args[0].shape)))
    monkeypatch.setattr(CHUNK, lambda spec: 8)
    np.testing.assert_allclose(runner.logits(ids), whole, rtol=1e-4, atol=1e-4)
    assert all(count * length <= max(8, rows) for count, length in fed)
    assert sum(length for _, length in fed) == 23
    fed.clear()
    np.testing.assert_allclose(runner.session().feed(ids), whole[:, -1], rtol=1e-4, atol=1e-4)
    assert len(fed) == math.ceil(23 / max(1, 8 // rows))
    hook.remove()


def test_a_session_goes_on_where_it_stopped(written: Written) -> None:
    runner, ids = TorchRunner(written(b.PLUS)), token_ids(2, 12)
    expected = runner.logits(ids)
    session, other = runner.session(), runner.session()
    other.feed(ids[:, ::-1])
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        np.testing.assert_allclose(session.feed(ids[:, start:stop]), expected[:, stop - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [b.V1, b.V2, b.PLUS, b.PKM, b.EXPANDED], ids=["v1", "v2", "plus", "pkm", "expanded"])
def test_trace(written: Written, monkeypatch: pytest.MonkeyPatch, spec: ModelSpec) -> None:
    runner, ids = TorchRunner(written(spec)), token_ids(2, 11)
    monkeypatch.setattr(CHUNK, lambda spec: 4)
    trace = runner.trace(ids)
    np.testing.assert_allclose(trace.logits, runner.logits(ids), rtol=1e-4, atol=1e-4)
    assert len(trace.layers) == len(spec.memory)
    hidden = read_by_memory(runner.model, torch.from_numpy(ids))
    for index, layer in enumerate(trace.layers):
        truth = memory_layer(spec, index, b.random_tensors(spec), hidden[index])
        clear = truth.margin > 1e-3
        np.testing.assert_array_equal(np.sort(layer.indices[clear], 1), np.sort(truth.indices[clear], 1))
        np.testing.assert_allclose(layer.output[clear], truth.output[clear], rtol=1e-3, atol=1e-3)
        assert layer.margin is not None
        np.testing.assert_allclose(layer.margin[clear], truth.margin[clear], rtol=0.05)
    assert all(layer.observer is None for layer in runner.model.memory_layers)


def read_by_memory(model: UltraMemModel, ids: torch.Tensor) -> list[np.ndarray]:
    """What each memory layer reads, [B*S, d]."""
    seen: list[np.ndarray] = []
    hooks = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy())) for m in model.memory]
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


def test_an_observer_is_removed_after_an_error(written: Written) -> None:
    runner = TorchRunner(written(b.V1))
    with pytest.raises(IndexError):
        runner.trace(np.full((1, 3), 61))
    assert runner.model.memory_layers[0].observer is None


def brute_force_margin(
    row: np.ndarray, col: np.ndarray, u: np.ndarray, v: np.ndarray, core: np.ndarray, k: int
) -> float:
    """The smallest gap of one token and head, over every way to fill the three selections."""
    a_row, a_col = u @ row, v @ col
    rows, cols = (sorted(range(len(a)), key=lambda i, a=a: -a[i])[:k] for a in (a_row, a_col))
    grid = [row[:, i] @ core.sum(0) @ col[:, j] for i, j in itertools.product(rows, cols)]
    gaps = [math.inf]
    for scores in (a_row, a_col, np.array(grid)):
        order = np.sort(scores)[::-1]
        if len(order) > k:
            gaps.append((order[k - 1] - order[k]) / max(abs(order[k - 1]), abs(order[k])))
    return min(gaps)


SIZE = st.integers(1, 7)


@settings(max_examples=80)
@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 3), SIZE, SIZE, SIZE)
def test_margin_against_brute_force(seed: int, heads: int, cores: int, n_row: int, n_col: int, k: int) -> None:
    k = min(k, min(k, n_row) * min(k, n_col))
    rng = np.random.default_rng(seed)
    row, col = rng.standard_normal((5, heads, 2, n_row)), rng.standard_normal((5, heads, 2, n_col))
    u, v, core = rng.standard_normal((heads, 2)), rng.standard_normal((heads, 2)), rng.random((cores, heads, 2, 2))
    found = selection_margin(*map(torch.from_numpy, (row, col, u, v, core)), k).numpy()
    for t in range(5):
        each = [brute_force_margin(row[t, h], col[t, h], u[h], v[h], core[:, h], k) for h in range(heads)]
        assert found[t] == pytest.approx(min(each), rel=1e-9)


def test_equal_scores_have_no_margin() -> None:
    row = torch.tensor([[[[3.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]])
    one, eye = torch.tensor([[1.0, 0.0]]), torch.eye(2)[None, None]
    assert selection_margin(row, row, one, one, eye, 2).item() == 0.0
    assert selection_margin(row, row, one, one, eye, 1).item() == pytest.approx(1 / 3)
    assert selection_margin(torch.zeros_like(row), row, one, one, eye, 1).item() == 0.0
    assert selection_margin(row[..., :1], row[..., :1], one, one, eye, 1).item() == math.inf


def test_opening(written: Written) -> None:
    path = written(b.V1, dtype="bfloat16")
    runner = open_runner(path)
    assert (runner.name, runner.vocab_size, runner.spec) == ("torch", 61, b.V1)
    assert next(open_runner(path, "torch", dtype="float32").model.parameters()).dtype == torch.float32  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"no model\.onnx for --runtime ort: run `ultramem-deploy export` first"):
        open_runner(path, "ort")
    with pytest.raises(InputError, match=r"--runtime: expected one of torch, .*, found 'jax'"):
        open_runner(path, "jax")
    with pytest.raises(InputError, match="no such file or directory"):
        open_runner(path / "missing")
    (path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="not a canonical checkpoint: run `ultramem-deploy convert` first"):
        open_runner(path, "torch")
