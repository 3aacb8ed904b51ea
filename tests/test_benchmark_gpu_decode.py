"""The GPU decode benchmark on tiny shapes on the CPU: its dry run, its bytes, its ratios, what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import gpu_decode
from benchmarks.decode_shapes import step_bytes
from benchmarks.gpu_decode import LARGE, TINY, Row
from benchmarks.gpu_decode_parts import SPARSE_PARTS, Experts, Memory, References


def test_the_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two points are measured, the third needs more than the room that it is given."""
    gpu_decode.main(["--dry", "--json", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [(figure["batch"], figure["kv"]) for figure in found["figures"]] == [(1, 64), (3, 64)]
    assert len(found["skipped"]) == 1 and found["skipped"][0].startswith("batch 4096, KV 2048: ")
    for figure in found["figures"]:
        ours, peer = figure["seconds"]["ultramem"], figure["seconds"]["moe"]
        assert ours.keys() == {"projections", "kv", "head", "step", *SPARSE_PARTS}
        assert peer.keys() == {"projections", "kv", "head", "step", "ffn"}
        assert figure["table"] == "bfloat16" and figure["product"] in ("grouped_mm", "one GEMM an expert")
    printed = capsys.readouterr().out
    assert "sparse_share" in printed and "skipped: batch 4096, KV 2048" in printed


def test_without_a_library_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_decode.main([])
    assert "--library: the path of libultramem_cuda.so is needed" in capsys.readouterr().err


@pytest.mark.parametrize("table, item", [("bfloat16", 2), ("int8", 1)])
def test_the_memory_holds_the_bytes_that_are_counted(table: str, item: int) -> None:
    """What a step reads of a layer: its query, keys and W_o whole, and K rows with their addresses."""
    batch = 3
    layer = Memory.random(TINY, "cpu", table).layers[0]
    whole = sum(layer[name].nbytes for name in ("query", "keys", "output"))
    slot = TINY.value_width * item + 8 + (4 if table == "int8" else 0)
    read = whole + batch * 2 * TINY.top_m * slot
    assert gpu_decode.step_bytes_of(TINY, "ultramem", table, batch, 64)["memory"] == read


def test_both_tables_run_and_experts_of_both_products_agree() -> None:
    for table in ("bfloat16", "int8"):
        for action in Memory.random(TINY, "cpu", table).parts(3, References()).values():
            action()
    experts = Experts.random(TINY, "cpu")
    torch.manual_seed(0)
    first, second = (parts["ffn"]() for parts in experts.products(5).values())
    # The same rows by the same experts: random draws are made once for both.
    for mine, theirs in zip(first, second, strict=True):  # type: ignore[call-overload]
        assert F.cosine_similarity(mine.float().flatten(), theirs.float().flatten(), 0) > 0.99


def test_what_is_told_of_a_row() -> None:
    """Sparse parts of 4 s against 12 s where bytes allow 6x; steps of 8 s against 16 s where bytes allow 4x."""
    ours = {"projections": 2.0, "kv": 1.0, "head": 1.0, "ffn": 1.0, "step": 8.0}
    ours |= {"memory.scores": 1.0, "memory.retrieval": 0.5, "memory.lookup": 1.0, "memory.output": 0.5}
    peer = {"projections": 2.0, "kv": 1.0, "head": 1.0, "ffn": 12.0, "step": 16.0}
    counted = {"ultramem": {"projections": 10.0, "ffn": 4.0, "memory": 6.0}, "moe": {"projections": 20.0, "ffn": 60.0}}
    counted["moe"]["memory"] = 0.0
    told = Row(1, 64, "bfloat16", "grouped_mm", {"ultramem": ours, "moe": peer}, counted).told(bandwidth=4.0)
    assert told["sparse_against_moe"] == 3 and told["sparse_byte_bound"] == 6 and told["sparse_share"] == 0.5
    assert told["step_against_moe"] == 2 and told["step_byte_bound"] == 4 and told["step_share"] == 0.5
    assert told["memory_of_bound"] == 6 / 4 / 3 and told["step_of_bound"] == 20 / 4 / 8


def test_what_does_not_fit_is_left_out() -> None:
    """H100: bf16 tables of 39 GB and short caches fit into 80% of 80 GB; a smaller GPU takes int8 tables."""
    points = [(batch, kv) for kv in gpu_decode.HISTORIES for batch in gpu_decode.BATCHES]
    kept, skipped = gpu_decode.split(LARGE, "bfloat16", points, 0.8 * 80e9)
    assert (512, 64) in kept and (64, 2048) not in kept and (4096, 2048) not in kept
    assert len(kept) + len(skipped) == len(points) == 15
    assert gpu_decode.choose_table(LARGE, 0.8 * 80e9) == "bfloat16"
    assert gpu_decode.choose_table(LARGE, 0.8 * 48e9) == "int8"
    cache = step_bytes(LARGE, "moe", 512, 64)["kv"]
    assert gpu_decode.held_bytes(LARGE, "moe", "int8", 512, 64) > cache == 2 * 32 * 512 * 64 * 2048 * 2


def test_a_product_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("not on this GPU\nand more")

    monkeypatch.setattr("benchmarks.gpu_decode_parts.grouped", broken)
    rows, skipped = gpu_decode.measure(References(), "cpu", TINY, [(2, 8)], 1e9, 1)
    assert rows[0].product == "one GEMM an expert" and skipped == ["grouped_mm, batch 2, KV 8: not on this GPU"]
    monkeypatch.setattr("benchmarks.gpu_decode_parts.one_by_one", broken)
    with pytest.raises(RuntimeError, match="one GEMM an expert, batch 2, KV 8: not on this GPU"):
        gpu_decode.measure(References(), "cpu", TINY, [(2, 8)], 1e9, 1)
