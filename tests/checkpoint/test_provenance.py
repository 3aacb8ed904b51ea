from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ultramem_deploy.checkpoint import Stage, TensorTask, read_provenance, source_record
from ultramem_deploy.checkpoint.provenance import canonical_json, fingerprint, pretty_json, tool_version
from ultramem_deploy.errors import InputError


def make(out: Path, source: Path, name: str = "import", size: int = 10) -> Path:
    with Stage(out, name, source_record(source), {"of": name}) as stage:
        stage.write_tensors("w", [TensorTask.of("a", np.arange(size, dtype=np.float32))])
        stage.write_json("config.json", {})
        stage.receipt["equal"] = True
    return out


def test_a_foreign_directory_is_hashed(source: Path) -> None:
    (source / "notes.md").write_text("not part of a checkpoint")
    record = source_record(source)
    assert (record.name, record.kind, record.chain) == ("source", "directory", ())
    assert sorted(record.files) == ["config.json", "model.safetensors"]
    data = (source / "model.safetensors").read_bytes()
    assert record.files["model.safetensors"] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_fingerprint_follows_content_not_place(source: Path, tmp_path: Path) -> None:
    before = source_record(source)
    source.rename(tmp_path / "moved")
    assert source_record(tmp_path / "moved").fingerprint == before.fingerprint
    (tmp_path / "moved" / "config.json").write_text("{}")
    assert source_record(tmp_path / "moved").fingerprint != before.fingerprint


def test_one_file_and_nested_weights(source: Path, tmp_path: Path) -> None:
    record = source_record(source / "model.safetensors")
    assert (record.name, record.kind, list(record.files)) == ("model.safetensors", "file", ["model.safetensors"])
    nested = tmp_path / "nested"
    (nested / "rank0").mkdir(parents=True)
    (nested / "rank0" / "x.pt").write_bytes(b"x")
    assert list(source_record(nested).files) == ["rank0/x.pt"]


def test_nothing_to_hash(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        source_record(tmp_path / "none")
    with pytest.raises(InputError, match="holds no checkpoint"):
        source_record(tmp_path)


def test_lineage_grows_by_one_a_stage(source: Path, tmp_path: Path) -> None:
    first = make(tmp_path / "first", source)
    second = make(tmp_path / "second", first, "fold")
    third = make(tmp_path / "third", second, "quantize")
    document = read_provenance(third)
    assert document is not None
    assert [entry["stage"] for entry in document["lineage"]] == ["import", "fold"]
    assert [entry["source"] for entry in document["lineage"]] == [["source"], ["first"]]
    assert document["lineage"][0]["receipt"] == {"equal": True}
    assert document["source"]["name"] == "second" and document["source"]["kind"] == "stage"
    assert document["tool"] == {"name": "ultramem-deploy", "version": tool_version()}


def test_several_sources(source: Path, tmp_path: Path) -> None:
    first = make(tmp_path / "first", source)
    with Stage(tmp_path / "out", "merge", [source_record(first), source_record(source)], {}) as stage:
        stage.write_text("a.txt", "a")
    document = read_provenance(tmp_path / "out")
    assert document is not None
    assert [one["name"] for one in document["source"]] == ["first", "source"]
    assert [entry["stage"] for entry in document["lineage"]] == ["import"]


def test_large_recorded_files_are_trusted_until_touched(source: Path, tmp_path: Path) -> None:
    out = make(tmp_path / "out", source, size=400_000)
    shard = out / "model-w.safetensors"
    data = bytearray(shard.read_bytes())
    before = source_record(out)
    os.utime(shard, ns=(2**62, 2**62))
    assert source_record(out) == before
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(2**62, 2**62))
    with pytest.raises(InputError, match=r"model-w.safetensors: changed since provenance.json"):
        source_record(out)
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match="changed since"):
        source_record(out)
    shard.unlink()
    with pytest.raises(InputError, match="missing"):
        source_record(out)


def test_edited_configurations_count_as_they_are(source: Path, tmp_path: Path) -> None:
    out = make(tmp_path / "out", source)
    before = source_record(out)
    (out / "config.json").write_text("[]\n")
    (out / "generation_config.json").write_text("{}")
    after = source_record(out)
    assert after.fingerprint != before.fingerprint
    assert after.files["generation_config.json"]["size"] == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"files": []}, "'files' must be dict"),
        ({"files": {"a": 1}}, "'a' lacks"),
    ],
)
def test_damaged_or_newer_provenance(source: Path, tmp_path: Path, change: dict[str, object], says: str) -> None:
    file = make(tmp_path / "out", source) / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=says):
        read_provenance(tmp_path / "out")


def test_what_is_not_ours_has_no_provenance(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None
    (tmp_path / "provenance.json").write_text('{"builder": "someone else"}')
    assert read_provenance(tmp_path) is None
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_provenance(tmp_path)


def test_canonical_json_is_plain() -> None:
    value = {"b": np.float32(0.5), "a": (1, np.int64(2), float("inf")), "p": Path("/home/someone/model")}
    assert canonical_json(value) == b'{"a":[1,2,"inf"],"b":0.5,"p":"model"}'


def test_names_that_are_no_utf8_are_spelled() -> None:
    """As the system gives the bytes of such a file's name to Python: JSON has no place for them."""
    name = os.fsdecode(b"b\xff")
    assert json.loads(pretty_json({name: [name, Path("in") / name]})) == {r"b\udcff": [r"b\udcff", r"b\udcff"]}
    assert fingerprint(name) != fingerprint("b")
