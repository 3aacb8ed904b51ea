"""`upcycle --method experts`: mixtures of experts as memories, and the columns that their neurons share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import builders as b
from tests.conftest import interrupted_before
from ultramem_deploy import upcycle
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.converters.upcycle import expert_stage
from ultramem_deploy.converters.upcycle.expert_columns import (
    Routed,
    activity_of,
    fitted_columns,
    popular_columns,
    random_columns,
)
from ultramem_deploy.errors import InputError
from ultramem_deploy.inspection import inspect
from ultramem_deploy.model import load
from ultramem_deploy.model.ffn import Experts
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.spec import ExpertsSpec, ModelSpec, NormSpec, RoutingSpec

GROUPS = RoutingSpec(3, "sigmoid", normalise=True, groups=4, top_groups=2, selection_bias=True, scale=2.5)
CASES = {
    "softmax": b.decoder(experts=ExpertsSpec((0, 1), 6, 10, RoutingSpec(2))),
    "normalised": b.decoder(experts=ExpertsSpec((0, 1), 6, 10, RoutingSpec(2, normalise=True))),
    "shared gate": b.decoder(experts=ExpertsSpec((1,), 6, 10, RoutingSpec(2), 20, True)),
    "groups": b.decoder(experts=ExpertsSpec((0,), 8, 10, GROUPS, 20)),
    "some blocks dense": b.decoder(num_layers=3, experts=ExpertsSpec((1,), 6, 10, RoutingSpec(2))),
}
IDS = torch.from_numpy(np.random.default_rng(3).integers(0, 61, (2, 13)))
# Sums of the same terms in another order, float32; logits of magnitude 4.
TOLERANCE = 2e-5


@pytest.mark.parametrize("case", CASES)
def test_all_neurons_are_the_mixture(case: str, tmp_path: Path) -> None:
    """The reference is the mixture itself, whose classes are compared with transformers' in tests/model."""
    source = b.write_checkpoint(tmp_path / "source", ModelSpec(CASES[case]))
    receipt = upcycle(source, tmp_path / "out", method="experts")
    experts = CASES[case].experts
    assert experts is not None and receipt["preserving"].startswith("exact")
    assert receipt["active_neurons"] == experts.routing.top_k * experts.width == receipt["active_neurons_source"]
    expected, model = load(source)(IDS), load(tmp_path / "out")
    assert not any(isinstance(m, Experts) and m.routed for m in model.modules())
    torch.testing.assert_close(model(IDS), expected, rtol=0, atol=TOLERANCE)
    export_onnx(tmp_path / "out", tmp_path / "onnx")
    found = OrtRunner(tmp_path / "onnx").logits(IDS.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=10 * TOLERANCE)
    assert inspect(tmp_path / "out")["memory_layers"]


def test_a_router_that_is_sure_takes_slots_of_its_experts_alone(tmp_path: Path) -> None:
    """The second expert's weight underflows to 0: the best one's eight slots are all that count."""
    spec = replace(b.ROUTED, memory=(replace(b.ROUTED.memory[0], top_m=8),))
    keys = 1e3 * b.random_tensors(spec)["memory.0.row_keys"]
    model = load(b.write_checkpoint(tmp_path / "sure", spec, changes={"memory.0.row_keys": keys}))
    hidden = torch.randn(40, 32, generator=torch.Generator().manual_seed(5))
    scores, indices = model.memory_layers[0].retrieve(hidden)
    best = (hidden @ torch.from_numpy(keys[0, 0]).T).argmax(1)
    assert scores.isfinite().all() and (indices // 8 == best[:, None]).all()
    export_onnx(tmp_path / "sure", tmp_path / "onnx")
    expected = model(IDS)
    found = OrtRunner(tmp_path / "onnx").logits(IDS.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=10 * TOLERANCE)


def test_every_neuron_is_a_slot(tmp_path: Path) -> None:
    spec = ModelSpec(CASES["softmax"])
    source = b.write_checkpoint(tmp_path / "source", spec)
    upcycle(source, tmp_path / "out", method="experts")
    theirs, ours = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    values, pre = ours.array("tables.block1.values"), ours.array("tables.block1.pre_values")
    for expert, neuron in ((0, 0), (3, 7), (5, 9)):
        prefix, slot = f"model.layers.1.mlp.experts.{expert}", expert * 10 + neuron
        np.testing.assert_array_equal(values[slot], theirs.array(f"{prefix}.down_proj.weight")[:, neuron])
        np.testing.assert_array_equal(pre[slot, :32], theirs.array(f"{prefix}.gate_proj.weight")[neuron])
        np.testing.assert_array_equal(pre[slot, 32:], theirs.array(f"{prefix}.up_proj.weight")[neuron])


def planted(noise: float) -> tuple[Experts, np.ndarray]:
    """Four experts that are one FFN with its neurons in four orders, and a little noise; the orders [E, I]."""
    generator = torch.Generator().manual_seed(0)
    spec = ExpertsSpec((0,), 4, 24, RoutingSpec(2))
    mixture = Experts(b.decoder(hidden_size=16, head_dim=4, num_heads=4), spec, routed=True).requires_grad_(False)
    base = {name: torch.randn(p.shape, generator=generator) for name, p in mixture.experts[0].named_parameters()}
    orders = np.stack([np.random.default_rng(e).permutation(24) for e in range(4)])
    for expert, order in zip(mixture.experts, orders, strict=True):
        for name, parameter in expert.named_parameters():
            ordered = base[name][:, order] if name.startswith("down") else base[name][order]
            parameter.copy_(ordered + noise * torch.randn(parameter.shape, generator=generator))
    mixture.gate.weight.copy_(torch.randn(4, 16, generator=generator))
    return mixture, orders


def test_like_neurons_share_a_column() -> None:
    mixture, orders = planted(noise=0.01)
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(1))
    data = Routed(x, *mixture.gate(x))
    columns = fitted_columns(mixture, data)
    assert all(sorted(order) == list(range(24)) for order in columns.order.tolist())
    held = np.stack([orders[e][columns.order[e]] for e in range(4)])  # which neuron of the one FFN, [E, I]
    agreeing = np.mean([held[e] == held[0] for e in range(1, 4)])
    chance = np.mean([orders[e] == orders[0] for e in range(1, 4)])
    assert agreeing > 0.8 > 0.2 > chance


def recall(mixture: Experts, order: np.ndarray, keys: np.ndarray, bias: np.ndarray, x: torch.Tensor) -> float:
    """Share of the 6 most active neurons of expert 2 among the 6 columns that score highest."""
    activity = activity_of(mixture.experts[2], x)[:, order[2]]
    scores = x @ torch.from_numpy(keys).T + torch.from_numpy(bias)
    found = torch.zeros_like(activity).scatter(1, scores.topk(6, dim=1).indices, 1.0)
    return float(found.gather(1, activity.topk(6, dim=1).indices).mean())


def test_fitted_columns_find_more_than_popular_and_random_ones() -> None:
    mixture, _ = planted(noise=0.01)
    # Away from zero, where activity has a linear trend: |silu(g)u| of centred inputs is even and has none.
    x = 1.5 * torch.randn(16, generator=torch.Generator().manual_seed(2)) + torch.randn(
        800, 16, generator=torch.Generator().manual_seed(3)
    )
    data, held = Routed(x[:600], *mixture.gate(x[:600])), x[600:]
    found = {
        name: recall(mixture, columns.order, columns.keys, columns.bias, held)
        for name, columns in (
            ("fitted", fitted_columns(mixture, data)),
            ("popular", popular_columns(mixture, data)),
            ("random", random_columns(4, 24, 16, 0)),
        )
    }
    assert found["fitted"] > found["popular"] > found["random"]


def test_a_silent_expert_leaves_the_others_their_columns() -> None:
    """A pruned expert adds nothing whatever it is told: any order of its neurons is right."""
    mixture, orders = planted(noise=0.01)
    mixture.experts[3].down_proj.weight.data.zero_()
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(1))
    columns = fitted_columns(mixture, Routed(x, *mixture.gate(x)))
    assert np.isfinite(columns.keys).all() and np.isfinite(columns.bias).all()
    assert sorted(columns.order[3]) == list(range(24))
    held = np.stack([orders[e][columns.order[e]] for e in range(3)])
    assert np.mean([held[e] == held[0] for e in range(1, 3)]) > 0.8


def test_a_fraction_is_fitted_and_measured(tmp_path: Path) -> None:
    spec = ModelSpec(CASES["softmax"])
    source = b.write_checkpoint(tmp_path / "source", spec, tokenizer=True)
    text = tmp_path / "text.txt"
    text.write_text("\f".join(f"Document {i} says a{i % 7}b{i % 5}c. " * 30 for i in range(40)), encoding="utf-8")
    sizes = {"active": 0.5, "calibration_tokens": 512, "held_out_tokens": 256}
    receipt = upcycle(source, tmp_path / "out", method="experts", text=text, **sizes)
    assert (receipt["active_neurons"], receipt["active_neurons_source"]) == (10, 20)
    assert receipt["baselines"].keys() == {"oracle", "experts"}
    assert receipt["baselines"]["oracle"]["kl"] < receipt["kl"]
    for block in receipt["blocks"]:
        assert 0 < block["recall"] < 1 and 0 < block["relative_error"] < 1
        assert block["dead_experts"] == 0 and 1 / 6 <= block["largest_expert_share"] < 1
    whole = upcycle(source, tmp_path / "whole", method="experts", text=text, **(sizes | {"active": 1.0}))
    assert whole["kl"] == pytest.approx(0, abs=1e-6)
    assert [block["recall"] for block in whole["blocks"]] == [1.0, 1.0]
    assert max(block["relative_error"] for block in whole["blocks"]) < 1e-5
    again = upcycle(source, tmp_path / "out", method="experts", text=text, **sizes)
    assert again["up_to_date"] and again["kl"] == receipt["kl"]


def test_a_run_that_goes_on_keeps_the_columns_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another number of threads may do, the second fit comes out otherwise: tables belong to the keys written."""
    source = b.write_checkpoint(tmp_path / "source", ModelSpec(CASES["softmax"]), tokenizer=True)
    text = b.write_text(tmp_path / "text.txt", 400)
    sizes = {"active": 0.5, "calibration_tokens": 512, "held_out_tokens": 128}
    whole = upcycle(source, tmp_path / "whole", method="experts", text=text, **sizes)
    with interrupted_before("tables"):
        upcycle(source, tmp_path / "out", method="experts", text=text, **sizes)
    monkeypatch.setattr(expert_stage, "fitted_columns", lambda *_: random_columns(6, 10, 32, 0))
    again = upcycle(source, tmp_path / "out", method="experts", text=text, **sizes)
    assert again.pop("resumed") and again["kl"] == pytest.approx(whole["kl"], rel=1e-5)
    found, expected = (Checkpoint.open(tmp_path / name) for name in ("out", "whole"))
    assert all(np.array_equal(found.array(name), expected.array(name)) for name in expected.tensors)


def test_refusals(tmp_path: Path) -> None:
    dense = b.write_checkpoint(tmp_path / "dense", b.PLAIN)
    with pytest.raises(InputError, match="no mixture of experts; --method neurons takes dense FFNs"):
        upcycle(dense, tmp_path / "out", method="experts")
    mixture = b.write_checkpoint(tmp_path / "mixture", ModelSpec(CASES["softmax"]))
    with pytest.raises(InputError, match="--active: expected a fraction above 0, at most 1, found 2"):
        upcycle(mixture, tmp_path / "out", method="experts", active=2.0)
    with pytest.raises(InputError, match="leaves 2 neurons a token, fewer than the 6 experts; expected at least 0.3"):
        upcycle(mixture, tmp_path / "out", method="experts", active=0.1)
    with pytest.raises(InputError, match="--seed: must not be negative, found -1"):
        upcycle(mixture, tmp_path / "out", method="experts", columns="random", seed=-1)
    with pytest.raises(InputError, match="tokenizer.json is missing: text cannot be read"):
        upcycle(mixture, tmp_path / "out", method="experts", active=0.5)
    gelu = b.write_checkpoint(tmp_path / "gelu", ModelSpec(replace(CASES["softmax"], activation="gelu")))
    with pytest.raises(InputError, match="expected silu experts without biases, found gelu"):
        upcycle(gelu, tmp_path / "out", method="experts")
    around = replace(CASES["softmax"], norm_position="both", norm=NormSpec("rms", 1e-5))
    with pytest.raises(InputError, match="norms its experts' outputs"):
        upcycle(b.write_checkpoint(tmp_path / "around", ModelSpec(around)), tmp_path / "out", method="experts")
    assert not (tmp_path / "out").exists()
