"""Memory layers of every kind against the papers' formulas in float64, and where they read and write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import builders as b
from tests.formulas_memory import Outcome, memory_layer
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import MemoryLayer, Retrieval, UltraMemModel, load
from ultramem_deploy.runtime.torch_runner import selection_margin
from ultramem_deploy.spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, TableSpec

TOKENS = 24
TIE = 1e-5
TOLERANCE = 2e-5  # relative to the largest output: float32 sums of a few hundred products

BIASED = NormSpec("layer", 1e-5, bias=True)


def changed(model: ModelSpec, tables: dict[str, TableSpec] | None = None, **changes: Any) -> ModelSpec:
    memory = tuple(replace(layer, **changes) for layer in model.memory)
    return replace(model, memory=memory, tables=tables or model.tables)


KINDS = {
    "v1": b.V1,
    "v1 rank 3, 4 cores": changed(b.V1, rank=3, cores=4),
    "v1 a query a head, biased norms": changed(b.V1, query_heads=2, query_norm=BIASED, key_norm=BIASED),
    "v1 more values than keys on a side": changed(b.V1, row_keys=3, col_keys=48, top_m=6),
    "v1 no shuffle": changed(b.V1, shuffle=False),
    "v2 gelu": b.V2,
    "v2 no activation": changed(b.V2, gate_activation="none"),
    "v2 silu": changed(b.V2, gate_activation="silu"),
    "v2 swiglu": changed(b.V2, gate_activation="swiglu"),
    "v2 blocks apart": changed(b.V2, sum_blocks=False),
    "v2 no gate": changed(b.V2, {"t": TableSpec(60, 16)}, gate_activation="none"),
    "memory+": b.PLUS,
    "memory+ shared query": changed(b.PLUS, query_heads=1),
    "memory+ no softmax": changed(b.PLUS, score_function="none"),
    "memory+ biases, token gate": changed(
        b.PLUS, query_bias=True, output_bias=True, output_gate_bias=True, token_gate=True
    ),
    "v1 rank-1 keys": changed(b.V1, key_norm=None, rank_one_keys=True),
    "v1 rank-1 keys, rank 3, a query a head": changed(
        b.V1, key_norm=None, rank_one_keys=True, rank=3, query_heads=2, row_keys=3, col_keys=48, top_m=6
    ),
    "expanded, rank-1 keys": changed(b.EXPANDED, key_norm=None, rank_one_keys=True),
    "v1 empty slot": changed(b.V1, slots=4, row_keys=4, col_keys=4, empty_slot=9),
    "v2 empty slot": changed(b.V2, slots=4, row_keys=4, col_keys=4, empty_slot=9),
    "pkm": b.PKM,
    "pkm empty slot": changed(b.PKM, {"t": TableSpec(16, 16)}, row_keys=4, col_keys=4, slots=16, empty_slot=9),
    "pkm key norm": changed(b.PKM, key_norm=b.RMS),
    "signed": b.SIGNED,
    "signed, some kept": changed(b.SIGNED, kept_values=5),
    "v2 swiglu, some kept": changed(b.V2, gate_activation="swiglu", kept_values=3, cores=1),
    "signed, one part, every slot": changed(b.SIGNED, rank=1, row_keys=2, col_keys=24, top_m=24),
    "signed swiglu at an offset": changed(b.SIGNED, {"t": TableSpec(28, 32, 64)}, gate_activation="swiglu", offset=9),
    "signed without a gate": changed(b.SIGNED, {"t": TableSpec(28, 32)}, gate_activation="none", empty_slot=30),
    "expanded": b.EXPANDED,
    "expanded, token gate": changed(b.EXPANDED, token_gate=True),
    "expanded gated": changed(b.EXPANDED, {"t": TableSpec(144, 64, 8)}, gate_activation="silu"),
}


def build(spec: ModelSpec, tensors: dict[str, np.ndarray]) -> UltraMemModel:
    model = UltraMemModel(spec)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
    return model.requires_grad_(False).eval()


def run(model: UltraMemModel, index: int, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output [T, d], indices [T, K] and margins [T] of the module."""
    layer, seen = model.memory_layers[index], []
    layer.observer = seen.append
    output = layer(torch.from_numpy(hidden), model.tables[layer.spec.table])
    layer.observer = None
    margins = [margin_of(layer, one) for one in seen]
    return output.numpy(), torch.cat([r.indices for r in seen]).numpy(), np.concatenate(margins)


def margin_of(layer: MemoryLayer, r: Retrieval) -> np.ndarray:
    factors = layer.factors(r.row_scores.device)
    return selection_margin(r.row_scores, r.col_scores, *factors, layer.spec.top_m).numpy()


def hidden_states(seed: int, tokens: int = TOKENS, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


def assert_same(spec: ModelSpec, index: int, output: np.ndarray, indices: np.ndarray, truth: Outcome) -> None:
    kept = truth.margin > TIE
    assert kept.mean() > 0.8
    heads = spec.memory[index].heads
    ours, theirs = (np.sort(x[kept].reshape(kept.sum(), heads, -1), 2) for x in (indices, truth.indices))
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(truth.output).max() > 0.05, "outputs this small would hide a difference"
    error = np.abs(output - truth.output)[kept].max() / np.abs(truth.output).max()
    assert error <= TOLERANCE, f"relative error {error:.3g}"


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_formulas(spec: ModelSpec) -> None:
    assert ModelSpec.from_config(spec.to_config()) == spec
    tensors = b.random_tensors(spec, seed=3)
    model = build(spec, tensors)
    for index in range(len(spec.memory)):
        hidden = hidden_states(index)
        output, indices, margins = run(model, index, hidden)
        truth = memory_layer(spec, index, tensors, hidden)
        assert_same(spec, index, output, indices, truth)
        clear = np.isfinite(truth.margin) & (truth.margin > 1e-3)
        np.testing.assert_allclose(margins[clear], truth.margin[clear], rtol=0.02)


@st.composite
def layers(draw: st.DrawFn) -> ModelSpec:
    """Random sizes of a tucker layer: blocks, windows that wrap round, gates, cores, ranks."""
    heads, top_m, cores, blocks = (draw(st.integers(1, n)) for n in (3, 5, 3, 4))
    row_keys, slots_factor = draw(st.integers(2, 6)), draw(st.integers(2, 5))
    gate = draw(st.sampled_from(["none", "gelu", "swiglu"]))
    slots = row_keys * slots_factor
    rows = slots + draw(st.integers(0, 9))
    col_keys = blocks * slots_factor
    top_m = min(top_m, min(top_m, row_keys) * min(top_m, col_keys))
    layer = MemoryLayerSpec(
        kind="ultramem_v2", read_block=0, write_block=0, heads=heads, top_m=top_m, row_keys=row_keys,
        col_keys=col_keys, key_width=draw(st.integers(2, 9)), table="t", slots=slots,
        rank=draw(st.integers(1, 3)), cores=cores, query_heads=draw(st.sampled_from([1, heads])),
        query_norm=draw(st.sampled_from([None, b.RMS, BIASED])), key_norm=draw(st.sampled_from([None, b.LAYER])),
        offset=draw(st.integers(0, rows - 1)), blocks=blocks, sum_blocks=draw(st.booleans()),
        shuffle=draw(st.booleans()), gate_activation=gate,
        empty_slot=draw(st.none() | st.integers(0, blocks * slots - 1)), token_gate=draw(st.booleans()),
    )  # fmt: skip
    width = cores * draw(st.integers(1, 6))
    pre_width = 2 * draw(st.integers(1, 4)) if gate != "none" else draw(st.sampled_from([0, 3]))
    return ModelSpec(b.decoder(num_layers=1), (layer,), {"t": TableSpec(rows, width, pre_width)})


@settings(max_examples=60)
@given(layers(), st.integers(0, 2**16))
def test_formulas_of_any_size(spec: ModelSpec, seed: int) -> None:
    assert ModelSpec.from_config(spec.to_config()) == spec
    tensors = b.random_tensors(spec, seed)
    hidden = hidden_states(seed, tokens=4)
    output, indices, _ = run(build(spec, tensors), 0, hidden)
    truth = memory_layer(spec, 0, tensors, hidden)
    kept = truth.margin > 1e-4
    np.testing.assert_array_equal(np.sort(indices[kept], 1), np.sort(truth.indices[kept], 1))
    scale = np.abs(truth.output).max() + 1e-3
    np.testing.assert_allclose(output[kept], truth.output[kept], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_state_dict_is_the_layout(spec: ModelSpec) -> None:
    shapes = {name: tuple(t.shape) for name, t in UltraMemModel(spec).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in tensor_layout(spec).items()}


def test_the_empty_slot_matters() -> None:
    """Every case of one reads it for some token, whose output it changes."""
    for name in ("v1 empty slot", "v2 empty slot", "pkm empty slot"):
        spec = KINDS[name]
        tensors, hidden = b.random_tensors(spec, seed=3), hidden_states(0)
        with_it = run(build(changed(spec, empty_slot=None), tensors), 0, hidden)[0]
        assert np.abs(run(build(spec, tensors), 0, hidden)[0] - with_it).max() > 0.05


BLOCKS = {
    "pre-norm": b.decoder(num_layers=3, ffn_widths=(48, 0, 20)),
    "post-norm": b.decoder(num_layers=3, ffn_widths=(0, 24, 8), norm_position="post", mlp_bias=True),
}


@pytest.mark.parametrize("dense", BLOCKS.values(), ids=BLOCKS)
def test_ffns_of_different_widths_or_none(dense: DecoderSpec) -> None:
    """A missing FFN adds what one with a zero down projection adds: with a norm behind it, nothing either."""
    places = [(0, 0), (1, 2)]
    memory = tuple(b.ultramem_v1(read_block=read, write_block=write) for read, write in places)
    spec = ModelSpec(dense, memory, {"t": TableSpec(36, 16)})
    assert ModelSpec.from_config(spec.to_config()) == spec
    tensors = b.random_tensors(spec)
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    found = build(spec, tensors)(ids)
    widest = replace(spec, decoder=replace(dense, ffn_widths=(), intermediate_size=48))
    padded = {n: padded_ffn(t, tensor_layout(widest)[n].shape) for n, t in tensors.items()}
    missing = tensor_layout(widest).keys() - padded.keys()
    assert missing
    padded |= {n: np.zeros(tensor_layout(widest)[n].shape, np.float32) for n in missing}
    torch.testing.assert_close(found, by_hand(build(widest, padded), ids, places), rtol=1e-5, atol=1e-5)


def padded_ffn(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(tensor, [(0, wide - own) for own, wide in zip(tensor.shape, shape, strict=True)])


def test_chunks_do_not_change_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(b.V2, b.random_tensors(b.V2))
    hidden = hidden_states(0)
    whole, chosen, _ = run(model, 0, hidden)
    monkeypatch.setattr("ultramem_deploy.model.memory.CHUNK_BYTES", 1)
    assert model.memory_layers[0].chunk_tokens == 1
    pieces, chosen_in_pieces, _ = run(model, 0, hidden)
    np.testing.assert_array_equal(chosen_in_pieces, chosen)
    # One token takes another path through the operators than many: the same float32 terms in another order.
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)


def test_no_tokens() -> None:
    for spec in (b.V1, b.V2, b.PLUS, b.EXPANDED):
        model = build(spec, b.random_tensors(spec))
        assert model.memory[0](torch.zeros(0, 32), model.tables["t"]).shape == (0, 32)


PLACES = {
    "full": [(0, 0), (1, 1), (2, 2), (3, 3)],
    "skip": [(0, 2)],
    "chained skips": [(0, 1), (2, 3)],
    "crossing": [(0, 2), (1, 3)],
    "out of order": [(2, 3), (0, 1)],
}


@pytest.mark.parametrize("post", [False, True], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_placement(places: list[tuple[int, int]], post: bool) -> None:
    dense = b.decoder(num_layers=4, norm_position="post" if post else "pre")
    memory = tuple(b.ultramem_v1(read_block=read, write_block=write) for read, write in places)
    spec = ModelSpec(dense, memory, {"t": TableSpec(36, 16)})
    assert ModelSpec.from_config(spec.to_config()) == spec
    model = build(spec, b.random_tensors(spec))
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(ids), by_hand(model, ids, places), rtol=1e-5, atol=1e-5)


def by_hand(model: UltraMemModel, ids: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """Blocks written out: x <- block(x) + sum of the memories that write here, each of what its block's FFN read."""
    context = model.context(ids)
    x = model.model.embed_tokens(ids)
    ffn_inputs: list[torch.Tensor] = []
    for number, block in enumerate(model.model.layers):
        if model.spec.decoder.norm_position == "pre":
            x = x + block.self_attn(block.input_layernorm(x), context)
            ffn_inputs.append(block.post_attention_layernorm(x))
            x = x + block.mlp(ffn_inputs[-1])
        else:
            x = x + block.post_attention_layernorm(block.self_attn(x, context))
            ffn_inputs.append(x)
            x = x + block.post_feedforward_layernorm(block.mlp(x))
        for index, (read, write) in enumerate(places):
            if write == number:
                x = x + model.memory[index](ffn_inputs[read].flatten(0, 1), model.tables["t"]).view(x.shape)
    return model.model.norm(x) @ model.lm_head.weight.T


def test_mixed_decoder_dtypes_load_at_the_widest(tmp_path: Path) -> None:
    spec = b.V1
    tensors = b.random_tensors(spec)
    name = "model.layers.0.mlp.up_proj.weight"
    narrow = tensors[name].astype(ml_dtypes.bfloat16)
    path = b.write_checkpoint(tmp_path / "mixed", spec, changes={name: narrow})
    model = load(path)
    assert {p.dtype for n, p in model.named_parameters() if n.startswith("model.")} == {torch.float32}
    model(torch.zeros(1, 4, dtype=torch.int64))
