"""FFNs as memories: exact where every neuron is taken, else exactly the chosen neurons; selection against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests import builders as b
from tests.conftest import Written, interrupted_before
from ultramem_deploy.checkpoint import Checkpoint, read_provenance
from ultramem_deploy.cli import main
from ultramem_deploy.converters.upcycle import neuron_stage, selection
from ultramem_deploy.converters.upcycle.baselines import balanced_clusters, oracle, selective
from ultramem_deploy.converters.upcycle.calibration import calibrate, ffns, shuffled_windows
from ultramem_deploy.errors import InputError
from ultramem_deploy.inspection import inspect
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import export, generate, heal, plan, upcycle, verify
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.spec import ExpertsSpec, ModelSpec, RoutingSpec
from ultramem_deploy.text import load_corpus

FAST: dict[str, Any] = {"calibration_tokens": 600, "held_out_tokens": 200}
EXACT = 1e-5  # float32 sums of 48 products in another order


@pytest.fixture
def dense(written: Written) -> Path:
    return written(b.PLAIN, "dense", tokenizer=True)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return b.write_text(tmp_path / "text.txt")


def made(dense: Path, out: Path, text: Path, **options: Any) -> dict[str, Any]:
    return upcycle(dense, out, method="neurons", text=text, **(FAST | options))


@pytest.mark.parametrize("changes", [{}, {"shared": 0.25}, {"spread": "even"}])
def test_all_neurons_are_the_source(dense: Path, text: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    receipt = made(dense, tmp_path / "out", text, active=1.0, **changes)
    ids = torch.arange(60).view(2, 30)
    np.testing.assert_allclose(load(tmp_path / "out")(ids), load(dense)(ids), atol=EXACT)
    assert receipt["perplexity_ratio"] == pytest.approx(1, abs=1e-5) and abs(receipt["kl"]) < 1e-6
    assert receipt["active_fraction"] == 1 and receipt["ffn_bytes_fraction"] == 1
    assert all(block["relative_error"] < 1e-9 and block["recall"] == 1 for block in receipt["blocks"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_not_rounded_again(written: Written, text: Path, tmp_path: Path, dtype: str) -> None:
    dense = written(b.PLAIN, "half", dtype=dtype, tokenizer=True)
    made(dense, tmp_path / "out", text, active=1.0)
    ids = torch.arange(30)[None]
    np.testing.assert_allclose(load(tmp_path / "out", "float32")(ids), load(dense, "float32")(ids), atol=EXACT)


@pytest.mark.parametrize("retrieve", [1.0, 1.5])
def test_a_token_gets_its_best_neurons_and_each_exactly(
    dense: Path, text: Path, tmp_path: Path, retrieve: float
) -> None:
    """Against float64 NumPy on the source's rows: the memory's keys divided by the up rows are the scales."""
    made(dense, tmp_path / "out", text, active=0.5, shared=0.25, spread="even", retrieve=retrieve)
    model, source, new = load(tmp_path / "out"), Checkpoint.open(dense), Checkpoint.open(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    for block, layer in enumerate(model.memory_layers):
        gate, up, down = (
            source.array(f"model.layers.{block}.mlp.{part}_proj.weight").astype(np.float64)
            for part in ("gate", "up", "down")
        )
        shared_up = new.array(f"model.layers.{block}.mlp.up_proj.weight")
        is_shared = (up[:, None].astype(np.float32) == shared_up[None]).all(2).any(1)
        assert is_shared.sum() == 12
        scale = new.array(f"memory.{block}.col_keys").reshape(36, 32)[:, 0] / up[~is_shared, 0]
        g, u = x @ gate.T, x @ up.T
        inner = g / (1 + np.exp(-g)) * u
        score = np.abs(u[:, ~is_shared]) * scale
        chosen = np.zeros((20, 48), dtype=bool)
        chosen[:, is_shared] = True
        best = np.argsort(-score, axis=1)[:, : layer.spec.top_m]
        weight = np.take_along_axis(score * np.abs(g / (1 + np.exp(-g)))[:, ~is_shared], best, 1)
        assert (layer.spec.top_m, layer.spec.summed) == (round(12 * retrieve), 12)
        best = np.take_along_axis(best, np.argsort(-weight, axis=1)[:, :12], 1)
        chosen[np.arange(20)[:, None], np.flatnonzero(~is_shared)[best]] = True
        wanted = np.where(chosen, inner, 0) @ down.T
        ffn = model.model.layers[block].mlp
        tokens = torch.from_numpy(x)
        found = layer(tokens, model.tables[layer.spec.table]) + ffn(tokens)
        np.testing.assert_allclose(found.numpy(), wanted, atol=EXACT)


def test_the_result_is_an_ordinary_checkpoint(dense: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    receipt = made(dense, out, text, active=0.5)
    export(out, tmp_path / "bundle")
    for runtime in ("ort", "ort-bodies"):
        verify(out, tmp_path / "bundle", runtime=runtime, text=text, tokens=64)
    options = {"prompt": "the memory ", "max_new_tokens": 6}
    assert generate(out, **options)["ids"] == generate(tmp_path / "bundle", **options)["ids"]
    assert plan(out)["fits"] and len(inspect(out)["memory_layers"]) == 2
    assert made(dense, out, text, active=0.5)["up_to_date"]
    provenance = read_provenance(out)
    assert provenance is not None and provenance["receipt"]["blocks"] == receipt["blocks"]
    healed = heal(out, tmp_path / "healed", text=text, steps=2, batch=1, length=32, lr=1e-3, value_lr=1e-3)
    assert healed["perplexity_after"] != healed["perplexity_before"]


def test_the_receipt_compares_with_what_reads_as_much(dense: Path, text: Path, tmp_path: Path) -> None:
    receipt = made(dense, tmp_path / "out", text, active=0.5)
    assert receipt["perplexity_ratio"] == pytest.approx(receipt["perplexity"] / receipt["perplexity_source"])
    assert set(receipt["baselines"]) == {"random_keys", "pruned_dense", "clusters"}
    assert 0 < receipt["kl"] < receipt["baselines"]["random_keys"]["kl"]
    kept = [block["kept_values"] for block in receipt["blocks"]]
    assert receipt["active_fraction"] == sum(kept) / 96 <= 0.5
    assert all(block["top_m"] == round(1.5 * block["kept_values"]) for block in receipt["blocks"])
    assert receipt["ffn_bytes_a_token"] == 4 * 32 * sum(
        48 + block["top_m"] + block["kept_values"] for block in receipt["blocks"]
    )
    assert receipt["ffn_bytes_a_token_source"] == 4 * 32 * 3 * 96
    dense_ratio = [block["relative_error"] for block in receipt["blocks"]]
    assert all(0 < error < 1 for error in dense_ratio)


def test_an_error_budget_chooses_the_neurons(dense: Path, text: Path, tmp_path: Path) -> None:
    loose = made(dense, tmp_path / "loose", text, error_budget=0.2)
    tight = made(dense, tmp_path / "tight", text, error_budget=1e-4)
    none = made(dense, tmp_path / "none", text, error_budget=1e-12)
    assert loose["active_fraction"] < tight["active_fraction"] <= 1
    assert max(block["relative_error"] for block in loose["blocks"]) < 0.3, "held-out text: near the budget"
    assert not none["memory_layers"] and none["ffn_bytes_fraction"] == 1, "the FFNs stay where all is needed"
    assert torch.equal(load(tmp_path / "none")(torch.arange(9)[None]), load(dense)(torch.arange(9)[None]))


def test_a_run_that_goes_on_keeps_what_it_fitted(
    dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted again, and as another number of threads may do otherwise, values would not belong to the keys written."""
    whole = made(dense, tmp_path / "whole", text, spread="error", shared=0.25)
    with interrupted_before("tables"):
        made(dense, tmp_path / "out", text, spread="error", shared=0.25)
    monkeypatch.setattr(neuron_stage, "block_curves", None)
    again = made(dense, tmp_path / "out", text, spread="error", shared=0.25)
    assert again.pop("resumed") and again == whole
    found, expected = (Checkpoint.open(tmp_path / name) for name in ("out", "whole"))
    assert all(np.array_equal(found.array(name), expected.array(name)) for name in expected.tensors)


def test_calibration_statistics(dense: Path, text: Path) -> None:
    model, corpus = load(dense), load_corpus(text)
    windows = shuffled_windows(Tokenizer(dense), corpus.train, 600, 512)
    assert windows.shape == (3, 256)
    statistics = calibrate(model, windows)
    seen: list[np.ndarray] = []
    hook = ffns(model)[1].register_forward_pre_hook(lambda _, given: seen.append(given[0][0].double().numpy()))
    for window in windows:
        model(torch.from_numpy(window)[None])
    hook.remove()
    x = np.concatenate(seen)
    gate, up, down = (
        getattr(ffns(model)[1], f"{part}_proj").weight.double().numpy() for part in ("gate", "up", "down")
    )
    silu = (x @ gate.T) / (1 + np.exp(-(x @ gate.T)))
    np.testing.assert_allclose(statistics[1].mean_gate, np.abs(silu).mean(0), rtol=1e-5)
    importance = np.abs(silu * (x @ up.T)).mean(0) * np.linalg.norm(down, axis=0)
    np.testing.assert_allclose(statistics[1].mean_importance, importance, rtol=1e-5)


def test_scales_are_powers_of_two_where_weights_have_no_spare_bits(dense: Path, text: Path) -> None:
    model = load(dense)
    windows = shuffled_windows(Tokenizer(dense), load_corpus(text).train, 600, 512)
    block = calibrate(model, windows)[0]
    exact = selection.key_scales(ffns(model)[0], block, exact=True)
    near = selection.key_scales(ffns(model)[0], block, exact=False)
    assert torch.equal(torch.frexp(exact).mantissa, torch.full((48,), 0.5, dtype=torch.float64))
    weight = block.mean_gate * ffns(model)[0].down_proj.weight.double().norm(dim=0)
    np.testing.assert_allclose(near / weight, (near / weight).median().expand(48), rtol=0.1)


@pytest.mark.parametrize(
    ("slots", "top_m", "expected"), [(48, 48, 1), (48, 24, 2), (48, 6, None), (1536, 192, 8), (7, 7, 1), (7, 6, None)]
)
def test_parts_of_the_key_grid(slots: int, top_m: int, expected: int | None) -> None:
    assert selection.parts(slots, top_m) == expected


def test_spreading() -> None:
    curves = [{4: 0.5, 8: 0.1, 16: 0.0}, {4: 0.3, 8: 0.29, 16: 0.0}]
    assert selection.spread_evenly(curves, 8) == [8, 8]
    assert selection.spread_by_error(curves, 7) == [8, 4], "no other step fits what is left"
    assert selection.spread_by_error(curves, 12) == [8, 16], "the steep step behind the flat one is found"
    assert selection.within_budget(curves, 0.29) == [8, 8]


def test_the_oracle_keeps_what_matters_most(dense: Path) -> None:
    model = load(dense)
    ids = torch.arange(40)[None]
    whole = model(ids)
    errors = []
    for count in (12, 24, 48):
        with selective(model, [oracle(mlp, count) for mlp in ffns(model)]):
            errors.append(float((model(ids) - whole).abs().max()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < EXACT
    assert torch.equal(model(ids), whole), "the model is as it was"


def test_clusters_are_balanced() -> None:
    rows = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    sizes = torch.bincount(balanced_clusters(rows, 7), minlength=7)
    assert sizes.sum() == 50 and sizes.max() <= 8


REFUSED = {
    "active": ({"active": 1.5}, "--active: expected a fraction above 0"),
    "shared": ({"shared": 0.5}, "--shared: expected a fraction below --active"),
    "retrieve": ({"retrieve": 0.5}, "--retrieve: expected at least 1"),
    "budget": ({"error_budget": 2.0}, "--error-budget"),
    "tokens": ({"calibration_tokens": 1}, "--calibration-tokens: expected at least 2"),
    "other": ({"knum": 4}, "unknown option 'knum'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_options(name: str, dense: Path, text: Path, tmp_path: Path) -> None:
    options, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        made(dense, tmp_path / "out", text, **options)
    assert not list(tmp_path.glob("out*"))


SOURCES = {
    "memory": (b.V1, "already has 1 memory layers"),
    "post": (ModelSpec(b.decoder(norm_position="post")), "norms its FFNs' outputs"),
    "bias": (ModelSpec(b.decoder(mlp_bias=True)), "FFNs have biases"),
    "quantised": (
        ModelSpec(b.decoder(hidden_size=64, intermediate_size=64, dense="int8")),
        "dense weights are int8 codes; upcycle before `quantize`",
    ),
    "experts": (
        ModelSpec(b.decoder(experts=ExpertsSpec((0,), 4, 8, RoutingSpec(2)))),
        "has mixtures of experts",
    ),
    "tanh": (ModelSpec(b.decoder(activation="gelu_tanh")), "the model's activation is gelu_tanh"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_refused_sources(name: str, written: Written, text: Path, tmp_path: Path) -> None:
    spec, message = SOURCES[name]
    with pytest.raises(InputError, match=message):
        made(written(spec, name, tokenizer=True), tmp_path / "out", text)


def test_the_verb(dense: Path, text: Path, tmp_path: Path) -> None:
    common = ["upcycle", str(dense), str(tmp_path / "out"), "--method", "neurons", "--text", str(text)]
    sizes = ["--calibration-tokens", "600", "--held-out-tokens", "200"]
    printed = CliRunner().invoke(main, [*common, *sizes, "--json"])
    receipt = json.loads(printed.stdout)
    assert receipt["stage"] == "upcycle" and receipt["method"] == "neurons" and len(receipt["blocks"]) == 2
    assert "before any training" in CliRunner().invoke(main, [*common, *sizes]).stdout
    wrong = CliRunner().invoke(main, [*common, "--knum", "4"])
    assert wrong.exit_code == 2 and "--knum: an option of --method identity, not of neurons" in wrong.stderr
