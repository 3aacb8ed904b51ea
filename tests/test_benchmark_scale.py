"""What the scale benchmark claims: no two pages of a table alike, a disk that keeps room, cold steps that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import memory_model, scale, scale_disk
from benchmarks.memory_model import decoder, memory_layer, model
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.spec import ModelSpec


@pytest.fixture(autouse=True)
def small_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_model, "_BLOCK", memory_model._BLOCK[: 1 << 15])


def small(side: int) -> ModelSpec:
    layer = memory_layer(side, side, 1, 4, 8, read_block=0, write_block=1)
    return model(decoder(32, 2, 2, 48, 61, 64), [layer], 512)


@pytest.mark.parametrize("storage", ["float", "int8"])
def test_no_two_pages_are_alike(storage: Any, tmp_path: Path) -> None:
    spec = model(small(100).decoder, list(small(100).memory), 512, storage)
    memory_model.write_source(tmp_path / "m", spec)
    values = Checkpoint.open(tmp_path / "m").torch("tables.t.values")
    pages = values.view(torch.uint8).flatten().numpy()
    pages = pages[: len(pages) // 4096 * 4096].reshape(-1, 4096)
    assert len(np.unique(pages, axis=0)) == len(pages) > 1000


@pytest.mark.parametrize("start", [0, 1, 2047, 2048, 5000])
def test_a_page_bears_the_same_number_wherever_its_chunk_starts(start: int) -> None:
    whole = np.zeros(20_000, np.uint16)
    memory_model.number_pages(whole, 0)
    part = np.zeros(20_000 - start, np.uint16)
    memory_model.number_pages(part, start)
    first = -(-start // 2048) * 2048
    np.testing.assert_array_equal(part[first - start : 18_432 - start], whole[first:18_432])


def test_the_disk_keeps_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_disk, "total_memory", lambda: 24 * 2**30)
    row = 2 * scale.WIDTH
    plenty = scale_disk.side_of(100e9, row)
    assert plenty is not None and 40e9 <= row * plenty**2 < 41.5e9
    little = scale_disk.side_of(48e9, row)
    assert little is not None and 1.2 * 24 * 2**30 <= row * little**2 <= 48e9 - scale_disk.MARGIN
    assert scale_disk.side_of(40e9, row) is None


def test_sizes_beyond_the_memory_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "total_memory", lambda: int(23.5 * 2**30))
    skipped: list[str] = []
    assert scale.fitting(scale.WHOLE, "float", skipped) == ["1M", "4M"]
    assert skipped == ["20M slots, float: 20.6 GB"]
    assert scale.fitting(scale.WHOLE, "int8", skipped) == ["1M", "4M", "20M"]


def test_cold_steps_read_the_disk_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANTED": 5e7, "MARGIN": 1e6, "DENSE": 1e6, "RESIDENT_SIDE": 64}.items():
        monkeypatch.setattr(scale_disk, name, value)
    monkeypatch.setattr(scale_disk, "total_memory", lambda: 1)
    found = scale_disk.from_disk(tmp_path, small, 4, 8, 2, 3)
    assert not list(tmp_path.iterdir())
    assert found["table_gb"] >= 0.05
    read = found["mb_read_a_step"]
    if read["cold alone"] == 0:
        pytest.skip("this filesystem keeps files in memory")
    assert read["cold overlap"] > 0
    assert read["warm alone"] == read["warm overlap"] == read["resident"] == 0


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_disk, "total_memory", lambda: 1 << 60)
    assert "are needed" in scale_disk.from_disk(tmp_path, small, 4, 8, 2, 3)["skipped"]
