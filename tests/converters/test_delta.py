"""diff and patch: the patched checkpoint equals the changed one, and a delta fits its own base alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests import builders
from ultramem_deploy import InputError, convert, diff, patch
from ultramem_deploy.checkpoint import Checkpoint, provenance, read_provenance
from ultramem_deploy.spec import ModelSpec


def arrays(path: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint.array(name).tobytes() for name in checkpoint.tensors}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return builders.write_checkpoint(tmp_path / "base", builders.V1)


def changed_copy(base: Path, out: Path, rows: list[int], name: str) -> Path:
    """A copy of `base` in which `rows` of tensor `name` are other numbers."""
    shutil.copytree(base, out)
    file = next(f for f in out.glob("*.safetensors") if name in load_file(f))
    tensors = load_file(file)
    tensors[name][rows] += 1
    save_file(tensors, file, {"format": "pt"})
    return out


def table_name(base: Path) -> str:
    return next(name for name in Checkpoint.open(base).tensors if name.endswith(".values"))


def test_a_fine_tuned_copy_of_a_stages_output(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its large shards are not those of the provenance.json that was copied with them: hashed as they are now."""
    monkeypatch.setattr(provenance, "CHEAP", 0)
    made, name = tmp_path / "made", table_name(base)
    convert(base, made, dtype="bfloat16")
    convert(made, tmp_path / "start", dtype="float32")
    tuned = changed_copy(tmp_path / "start", tmp_path / "tuned", [2], name)
    assert diff(tmp_path / "start", tuned, out=tmp_path / "delta")["tensors"][name]["rows"] == 1
    changed = read_provenance(tmp_path / "delta")["source"][1]  # type: ignore[index]
    shards = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tuned.glob("*.safetensors")}
    assert {file: changed["files"][file]["sha256"] for file in shards} == shards
    patch(tmp_path / "start", tmp_path / "patched", delta=tmp_path / "delta")
    assert arrays(tmp_path / "patched") == arrays(tuned)
    with pytest.raises(InputError, match=r"changed since .* or remove provenance.json to take it as it is"):
        convert(tuned, tmp_path / "other", dtype="float16")


def test_changed_rows_travel_alone(base: Path, tmp_path: Path) -> None:
    name = table_name(base)
    tuned = changed_copy(base, tmp_path / "tuned", [1, 5, 6], name)
    result = diff(base, tuned, out=tmp_path / "delta")
    rows = Checkpoint.open(base).info(name).shape[0]
    assert result["tensors"] == {name: {"kind": "rows", "rows": 3, "total_rows": rows}}
    assert not result["identical"] and not result["config_changed"]
    width = Checkpoint.open(base).info(name).shape[1]
    assert result["delta_bytes"] == 3 * (width * 4 + 8)
    receipt = patch(base, tmp_path / "patched", delta=tmp_path / "delta")
    assert receipt == {"tensors": 1, "rows": 3, "up_to_date": False}
    assert arrays(tmp_path / "patched") == arrays(tuned)
    assert ModelSpec.load(tmp_path / "patched") == ModelSpec.load(tuned)
    assert diff(tuned, tmp_path / "patched")["identical"]


def test_equal_checkpoints_are_identical(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "same")
    result = diff(base, tmp_path / "same", out=tmp_path / "delta")
    assert result["identical"] and result["tensors"] == {} and result["delta_bytes"] == 0
    patch(base, tmp_path / "patched", delta=tmp_path / "delta")
    assert arrays(tmp_path / "patched") == arrays(base)


def test_added_removed_and_reshaped_tensors(base: Path, tmp_path: Path) -> None:
    other = builders.write_checkpoint(tmp_path / "other", builders.V2, seed=1)
    for before, after, kinds in (
        (base, other, {"added", "replaced", "rows"}),
        (other, base, {"removed", "replaced", "rows"}),
    ):
        delta, patched = tmp_path / f"{before.name}-delta", tmp_path / f"{before.name}-patched"
        found = diff(before, after, out=delta)
        assert {entry["kind"] for entry in found["tensors"].values()} == kinds and found["config_changed"]
        patch(before, patched, delta=delta)
        assert arrays(patched) == arrays(after)
        assert ModelSpec.load(patched) == ModelSpec.load(after)


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    name = table_name(base)
    tuned = changed_copy(base, tmp_path / "tuned", [2], name)
    diff(base, tuned, out=tmp_path / "delta")
    with pytest.raises(InputError, match="not the one that the delta was made from"):
        patch(tuned, tmp_path / "patched", delta=tmp_path / "delta")
    assert not (tmp_path / "patched").exists()


@pytest.mark.parametrize(
    "damage",
    ["no description", "no config", "format", "entry", "removed", "rows out of range", "rows of reals", "values"],
)
def test_damaged_deltas_are_refused(base: Path, tmp_path: Path, damage: str) -> None:
    name = table_name(base)
    diff(base, changed_copy(base, tmp_path / "tuned", [2, 3], name), out=tmp_path / "delta")
    description, file = tmp_path / "delta/delta.json", tmp_path / "delta/model-delta.safetensors"
    content, tensors = json.loads(description.read_text()), load_file(file)
    if damage == "no description":
        description.unlink()
    elif damage == "format":
        description.write_text(json.dumps(content | {"format": 99}))
    elif damage == "no config":
        description.write_text(json.dumps({key: value for key, value in content.items() if key != "config"}))
    elif damage == "removed":
        content["tensors"][name]["kind"] = "removed"
        description.write_text(json.dumps(content))
    elif damage == "rows of reals":
        save_file(tensors | {f"{name}:rows": np.array([2, 3], np.float32)}, file)
    elif damage == "entry":
        description.write_text(json.dumps(content | {"tensors": {name: {"kind": "magic"}}}))
    elif damage == "rows out of range":
        save_file(tensors | {f"{name}:rows": np.array([2, 10**9])}, file)
    else:
        save_file(tensors | {f"{name}:values": tensors[f"{name}:values"][:1]}, file)
    with pytest.raises(InputError):
        patch(base, tmp_path / "patched", delta=tmp_path / "delta")
    assert not (tmp_path / "patched").exists()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("delta")
    base = builders.write_checkpoint(folder / "base", builders.V1)
    name = data.draw(st.sampled_from(sorted(n for n, i in Checkpoint.open(base).tensors.items() if i.shape)))
    rows = Checkpoint.open(base).info(name).shape[0]
    chosen = sorted(data.draw(st.sets(st.integers(0, rows - 1), max_size=8)))
    tuned = changed_copy(base, folder / "tuned", chosen, name)
    found = diff(base, tuned, out=folder / "delta")["tensors"]
    assert found == ({name: {"kind": "rows", "rows": len(chosen), "total_rows": rows}} if chosen else {})
    patch(base, folder / "patched", delta=folder / "delta")
    assert arrays(folder / "patched") == arrays(tuned)


def test_a_budget_without_room_for_a_chunk_is_refused(base: Path, tmp_path: Path) -> None:
    tuned = changed_copy(base, tmp_path / "tuned", [2], table_name(base))
    with pytest.raises(InputError, match="--memory-budget: one chunk of tensor .* short; give --memory-budget 1MiB"):
        diff(base, tuned, out=tmp_path / "delta", memory_budget=100)
    diff(base, tuned, out=tmp_path / "delta", memory_budget="64MiB")
    with pytest.raises(InputError, match="--memory-budget: one chunk of tensor"):
        patch(base, tmp_path / "out", delta=tmp_path / "delta", memory_budget=10)
    assert not (tmp_path / "out").exists()


def test_a_number_without_axes_travels(base: Path, tmp_path: Path) -> None:
    tensors = {name: Checkpoint.open(base).array(name) for name in Checkpoint.open(base).tensors}
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        shutil.copy(base / "config.json", tmp_path / name)
        save_file(tensors | {"more": np.array(number, np.float32)}, tmp_path / name / "model.safetensors")
    changes = diff(tmp_path / "one", tmp_path / "two", out=tmp_path / "delta")["tensors"]
    assert changes == {"more": {"kind": "rows", "rows": 1, "total_rows": 1}}
    patch(tmp_path / "one", tmp_path / "patched", delta=tmp_path / "delta")
    assert arrays(tmp_path / "patched") == arrays(tmp_path / "two")
