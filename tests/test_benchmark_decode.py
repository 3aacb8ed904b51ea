"""The pieces of benchmarks/decode.py on tiny shapes: what is timed computes what it says; bytes are counted right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import decode, decode_peers
from benchmarks.decode_peers import PRODUCTS, Product, mixture
from benchmarks.decode_rows import KINDS, Row, paper_line, paper_ratio
from benchmarks.decode_shapes import (
    ITEM,
    LARGER,
    WHOLE,
    Arena,
    GatedShape,
    Shape,
    build,
    step_bytes,
    step_flops,
)
from benchmarks.decode_steps import PARTS, measure

TINY = Shape("tiny", 64, 2, 64, 96, 2, ((0, 1),), 4, 8, 32, 16)
PART = replace(TINY, whole=(6, 4))
GATED = GatedShape("gated", 64, 2, 64, 96, 2, ((0, 0), (1, 1)), 4, 8, 32, 16, experts=6)


@pytest.fixture(scope="module")
def arena() -> Arena:
    return Arena(TINY.arena_bytes())


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=list(PRODUCTS))
def test_every_product_is_the_mixture_of_experts(arena: Arena, product: Product) -> None:
    layer = mixture(TINY, arena).model.layers[1].mlp
    layer.product, layer.reached = product, 0
    x = torch.randn(1, 9, TINY.hidden, generator=torch.Generator().manual_seed(1)).bfloat16()
    weights, chosen = F.linear(x[0], layer.router).float().softmax(-1).topk(2)
    expected = torch.zeros(9, TINY.hidden, dtype=torch.float64)
    for token in range(9):
        for weight, expert in zip(weights[token] / weights[token].sum(), chosen[token], strict=True):
            gate, up = (layer.gate_up[expert].double() @ x[0, token].double()).chunk(2)
            expected[token] += weight * (layer.down[expert].double() @ (F.silu(gate) * up))
    # Three products in bfloat16 (2^-8 relative each) and a weight of as many bits.
    torch.testing.assert_close(layer(x)[0].double(), expected, rtol=0.03, atol=0.01 * float(expected.abs().max()))
    assert layer.reached == len(chosen.unique())


@pytest.mark.skipif(bool(decode_peers.LEFT_OUT), reason="; ".join(decode_peers.LEFT_OUT))
@pytest.mark.parametrize(("columns", "depth"), [(4, 8), (12, 40), (36, 32), (100, 264)])
def test_the_streaming_kernel_is_the_product_of_each_experts_rows(columns: int, depth: int) -> None:
    counts = torch.tensor([0, 1, 6, 0, 7, 13, 30, 2])
    generator = torch.Generator().manual_seed(columns)
    rows = torch.randn(int(counts.sum()), depth, generator=generator).bfloat16()
    weights = torch.randn(len(counts), columns, depth, generator=generator).bfloat16()
    found = decode_peers._grouped_product(rows, counts.cumsum(0), weights)
    exact, expert = weights.double().numpy(), np.repeat(np.arange(len(counts)), counts)
    expected = np.einsum("ncd,nd->nc", exact[expert], rows.double().numpy())
    # One rounding to bfloat16; sums of `depth` products in float32 that cancel.
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=2**-8, atol=1e-5 * depth)
    with pytest.raises(ValueError, match="groups of 4"):
        decode_peers._grouped_product(rows, counts.cumsum(0), weights[:, 1:].contiguous())


def test_models_share_the_decoder_and_the_pages_behind_it(arena: Arena) -> None:
    dense, unfolded, experts = build(TINY.dense(), arena), build(TINY.unfolded(), arena), mixture(TINY, arena)
    for name, weight in dense.named_parameters():
        if not name.endswith("norm.weight"):
            assert unfolded.get_parameter(name).data_ptr() == weight.data_ptr(), name
    first = min(
        p.data_ptr() for n, p in unfolded.named_parameters() if n.startswith(("memory.", "tables.")) and "norm" not in n
    )
    assert experts.model.layers[0].mlp.gate_up.data_ptr() == first
    with pytest.raises(ValueError, match="arena"):
        arena.take(1 << 30)


def test_expanded_rows_lie_in_as_many_bytes(arena: Arena) -> None:
    before, after = build(TINY.unfolded(), arena).tables["t0"], next(iter(build(TINY.folded(), arena).tables.values()))
    assert before.values.shape == (32 * 32, 16)
    assert after.values.shape == (32 * 32 * 16 // 128, 128)


def test_no_two_pages_are_alike() -> None:
    pages = Arena(40 << 20).take(20 << 20).view(torch.int16).view(-1, 2048)
    assert len({page.numpy().tobytes() for page in pages}) == len(pages)


def test_steps_are_timed_by_part_and_leave_the_cache(arena: Arena) -> None:
    models = {"dense": build(TINY.dense(), arena), "unfolded": build(TINY.unfolded(), arena)}
    found, steps = measure(models, 3, 5, 0.0)
    assert steps == 4
    assert found["dense"]["memory"] == 0 < found["unfolded"]["memory"]
    assert all(found["unfolded"][part] > 0 for part in PARTS)


@pytest.mark.parametrize(("kv", "bound"), [(64, 5.7), (256, 3.5)])
def test_byte_bounds_of_151m_at_batch_64(kv: int, bound: float) -> None:
    counts = {kind: step_bytes(WHOLE, kind, 64, kv) for kind in KINDS}
    row = Row("151M", "", 64, kv, {}, counts, {}, "", 0.0, 1.0)
    assert row.bound(kind="unfolded") == pytest.approx(bound, rel=0.02)
    assert row.bound("sparse", "unfolded") == pytest.approx(13.6, rel=0.02)


def test_bytes_of_the_decoder_are_those_of_its_weights(arena: Arena) -> None:
    dense = build(TINY.dense(), arena)
    counted = step_bytes(TINY, "dense", 1, 0)
    weights = sum(p.numel() for name, p in dense.named_parameters() if not name.endswith("norm.weight"))
    assert sum(counted.values()) == ITEM * weights


def test_parts_stand_for_the_whole_model() -> None:
    held, parts = ({k: step_bytes(shape, k, 5, 9) for k in KINDS} for shape in (TINY, PART))
    factors = {"projections": 3, "kv": 3, "ffn": 3, "memory": 4, "head": 1}
    assert parts == {k: {part: factors[part] * n for part, n in counts.items()} for k, counts in held.items()}
    assert (
        step_flops(PART, "dense", 5, 9)["ffn"]
        == 3 * step_flops(TINY, "dense", 5, 9)["ffn"]
        == 3 * 2 * 5 * 2 * 3 * 64 * 64
    )
    seconds = dict.fromkeys(PARTS, 1.0)
    assert decode.whole(PART, seconds | {"step": 6.0})["step"] == 3 + 3 + 3 + 4 + 1 + 3
    assert decode.whole(PART, seconds | {"step": 6.0})["sparse"] == 3 + 4
    assert decode.whole(TINY, {"step": 6.0}) == {"step": 6.0}
    assert PART.held.startswith("2 of 6 blocks and 1 of 4 memory layers")


def test_the_second_papers_layers_share_a_table_and_gate_it() -> None:
    arena = Arena(GATED.arena_bytes())
    spec = GATED.unfolded()
    assert [(layer.offset, layer.slots, layer.write_block) for layer in spec.memory] == [(0, 1024, 0), (1024, 1024, 1)]
    assert spec.tables["t"].rows == 2 * 1024
    models = {kind: build(described, arena) for kind, described in (("u", spec), ("f", GATED.folded()))}
    x, cached = torch.tensor([[3], [4]]), {}
    for kind, built in models.items():
        cached[kind] = built(x)
    assert all(torch.isfinite(out).all() for out in cached.values())
    # Expanded tables lie in as many bytes as the shared one, whole rows apart.
    folded = sum(t.values.numel() + t.pre_values.numel() for t in models["f"].tables.values())
    assert 0 <= 2 * 1024 * 32 - folded < 2 * (128 + 16)


def test_bytes_of_a_gated_memory_are_those_of_its_weights_and_rows(arena: Arena) -> None:
    built = build(GATED.unfolded(), Arena(GATED.arena_bytes()))
    once = sum(
        p.numel() * ITEM
        for n, p in built.named_parameters()
        if n.startswith("memory.") and "norm" not in n and "core" not in n
    )
    rows = 2 * 3 * 4 * (2 * 16 * ITEM + 8)  # layers, tokens, top-m; value and pre-value, and the shuffle's entry
    assert step_bytes(GATED, "unfolded", 3, 1)["memory"] == once + rows


@pytest.mark.parametrize(("shape", "total"), zip(LARGER, (8.9e9, 21.4e9, 1.22e9), strict=True))
def test_larger_shapes_have_the_papers_parameters(shape: Shape, total: float) -> None:
    blocks, layers = shape.whole or (shape.blocks, len(shape.paths))
    memory = shape.unfolded()
    tables = sum(t.rows * (t.value_width + t.pre_value_width) for t in memory.tables.values())
    tables *= layers if shape.whole else 1
    decoder = blocks * shape.hidden * (4 * shape.hidden + 3 * shape.inner) + shape.vocab * shape.hidden
    assert decoder + tables == pytest.approx(total, rel=0.05)


def test_points_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "total_memory", lambda: 10e6)
    kept, left = decode.fitting(TINY, [(1, 64), (512, 2048)])
    assert kept == [(1, 64)]
    assert left == ["tiny, batch 512, KV 2048: 1 GB"]


def test_where_six_times_is_reached() -> None:
    def row(batch: int, experts: float) -> Row:
        seconds = {kind: {"step": 1.0} for kind in KINDS} | {"moe": {"step": experts}, "folded": {"step": 2.0}}
        none = dict.fromkeys(PARTS, 0.0)
        counts = {kind: none | {"ffn": 9.0 if kind == "moe" else 1.0} for kind in KINDS}
        return Row("s", "the whole model", batch, 64, seconds, counts, {}, "p", 1.0, 1.0)

    found = paper_ratio([row(1, 2.0), row(8, 5.0)])
    assert found["measured"] == {"reached": {}, "largest": 5.0, "largest_at": "s, batch 8, KV 64"}
    assert found["byte_bound"]["reached"] == {"s, batch 1, KV 64": 9.0, "s, batch 8, KV 64": 9.0}
    assert "measured nowhere, the largest is 5.00 (s, batch 8, KV 64); by bytes alone s, batch 1" in paper_line(found)
    assert paper_ratio([row(64, 6.5)])["measured"]["reached"] == {"s, batch 64, KV 64": 6.5}


def test_a_roofline_takes_the_longer_of_bytes_and_products_by_part() -> None:
    none = dict.fromkeys(PARTS, 0.0)
    counts = {kind: none | {"ffn": 10.0, "head": 4.0} for kind in KINDS} | {"moe": none | {"ffn": 40.0, "head": 4.0}}
    flops = {kind: none | {"ffn": 200.0, "head": 2.0} for kind in KINDS}
    row = Row("s", "", 1, 64, {kind: {"step": 1.0} for kind in KINDS}, counts, flops, "", 1.0, 1.0)
    assert row.roofline(rate=10.0) == (40 + 4) / (20 + 4)
    assert row.roofline(rate=10.0, part="sparse") == 40 / 20
