"""Rows of mapped tables asked for where a memory layer reads and looked up where it writes: the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import builders
from ultramem_deploy.model import load, memory
from ultramem_deploy.ops import native

KEPT = replace(builders.SIGNED, memory=(builders.signed(kept_values=5),))
SPECS = {
    "v1": builders.V1,
    "v2": builders.V2,
    "memory_plus": builders.PLUS,
    "expanded": builders.EXPANDED,
    "routed": builders.ROUTED,
    "signed": builders.SIGNED,
    "kept": KEPT,
}
IDS = torch.arange(24).view(2, 12) % 61

Asked = list[tuple[int, torch.Tensor]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Where tables begin whose rows were asked for early, and the addresses."""
    calls: Asked = []
    ask = native.ask_ahead

    def noted(table: torch.Tensor, addresses: torch.Tensor) -> None:
        calls.append((table.data_ptr(), addresses))
        ask(table, addresses)

    monkeypatch.setattr(native, "ask_ahead", noted)
    return calls


def logits_of_both(path: Path, **options: str) -> tuple[torch.Tensor, torch.Tensor]:
    return load(path, overlap=False, **options)(IDS), load(path, overlap=True, **options)(IDS)


@pytest.mark.parametrize("name", SPECS)
def test_bits_do_not_change(name: str, tmp_path: Path, asked: Asked) -> None:
    path = builders.write_checkpoint(tmp_path / name, SPECS[name])
    plain, early = logits_of_both(path, tables="mapped")
    torch.testing.assert_close(early, plain, rtol=0, atol=0)
    spec = SPECS[name]
    gates = sum(spec.tables[layer.table].pre_value_width > 0 for layer in spec.memory)
    values = sum(layer.kept_values is None for layer in spec.memory)
    assert len(asked) == gates + values


def test_bits_do_not_change_over_chunks(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNK_BYTES", 2_000)  # few tokens a chunk
    path = builders.write_checkpoint(tmp_path / "v2", builders.V2)
    plain, early = logits_of_both(path, tables="mapped")
    torch.testing.assert_close(early, plain, rtol=0, atol=0)
    assert len(asked) > 2 * 2 * len(builders.V2.memory)


def test_what_is_asked_for_is_what_is_looked_up(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the read: block 1's attention has not run yet."""
    model = load(builders.write_checkpoint(tmp_path / "v1", builders.V1), tables="mapped")
    order: list[str] = []
    looked_up: list[torch.Tensor] = []
    lookup = memory.sparse_lookup

    def noted(table: torch.Tensor, addresses: torch.Tensor, *others: object) -> torch.Tensor:
        order.append("lookup")
        looked_up.append(addresses)
        return lookup(table, addresses, *others)

    monkeypatch.setattr(memory, "sparse_lookup", noted)
    model.model.layers[1].register_forward_hook(lambda *_: order.append(f"block after {len(asked)} requests"))
    model(IDS)
    assert order == ["block after 1 requests", "lookup"]
    table, addresses = asked[0]
    assert table == model.tables["t"].values.data_ptr()
    torch.testing.assert_close(addresses, looked_up[0], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["resident", "auto"])
def test_nothing_is_asked_for_in_memory(mode: str, tmp_path: Path, asked: Asked) -> None:
    path = builders.write_checkpoint(tmp_path / "v1", builders.V1)
    load(path, tables=mode)(IDS)
    assert not asked


def test_the_environment_decides(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAMEM_OVERLAP", "0")
    path = builders.write_checkpoint(tmp_path / "v1", builders.V1)
    load(path, tables="mapped")(IDS)
    assert not asked
