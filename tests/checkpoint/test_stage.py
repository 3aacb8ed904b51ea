from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ultramem_deploy.checkpoint.appending as appending
import ultramem_deploy.checkpoint.files as files
import ultramem_deploy.checkpoint.provenance as provenance
import ultramem_deploy.checkpoint.stage as stage_module
import ultramem_deploy.checkpoint.writer as writer
from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, read_provenance, source_record
from ultramem_deploy.errors import InputError

Usage = namedtuple("Usage", "total used free")


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def build(out: Path, source: Path, options: dict[str, Any] | None = None, **kwargs: Any) -> Stage:
    """One stage that casts two tensors into one shard a tensor, and writes a config."""
    checkpoint = Checkpoint.open(source)
    with Stage(out, "cast", source_record(source), options or {"dtype": "bfloat16"}, **kwargs) as stage:
        if not stage.up_to_date:
            tasks = [TensorTask.copy(checkpoint, name, dtype="bfloat16") for name in ("table", "proj")]
            stage.write_tensors("w", tasks)
            stage.write_json("config.json", {"hidden": np.int64(8)})
            stage.receipt["max_abs_error"] = np.float32(0.5)
    return stage


def test_a_stage_makes_a_checkpoint(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage = build(out, source)
    assert not stage.up_to_date and stage.resumed == [] and stage.restarted is None
    assert sorted(contents(out)) == [
        "config.json",
        "model-w.safetensors",
        "model.safetensors.index.json",
        "provenance.json",
    ]
    assert not (tmp_path / "out.partial").exists()
    assert sorted(Checkpoint.open(out).tensors) == ["proj", "table"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": (800 + 32) * 2},
        "weight_map": {"proj": "model-w.safetensors", "table": "model-w.safetensors"},
    }
    document = read_provenance(out)
    assert document is not None
    assert document["receipt"] == {"max_abs_error": 0.5}
    assert str(tmp_path) not in json.dumps(document)
    for name, entry in document["files"].items():
        assert entry == {"size": (out / name).stat().st_size, "sha256": files.sha256_file(out / name)}


def test_several_shards_are_indexed(source: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source, max_shard_bytes=1000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = [f"model-w-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    assert index["weight_map"] == {"proj": names[0], "table": names[1]}
    for name, file in index["weight_map"].items():
        assert list(load_file(tmp_path / "out" / file)) == [name]


def test_second_run_is_up_to_date(source: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source)
    before = contents(tmp_path / "out")
    stage = build(tmp_path / "out", source)
    assert stage.up_to_date and stage.workdir == tmp_path / "out"
    assert contents(tmp_path / "out") == before
    with pytest.raises(RuntimeError, match="up to date"):
        stage.write_text("x.txt", "x")


def test_jobs_and_budget_never_change_a_byte(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "a", source, jobs=1)
    build(tmp_path / "b", source, jobs=4, copy=True)
    monkeypatch.setattr(writer, "CHUNK_BYTES", 100)
    build(tmp_path / "c", source, jobs=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_existing_output_refuses_and_names_what_differs(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, source)
    before = contents(out)
    with pytest.raises(InputError, match=r"made otherwise: the options \(dtype\) changed; use --overwrite"):
        build(out, source, {"dtype": "float16"})
    with pytest.raises(InputError, match="the shard size .* changed"):
        build(out, source, max_shard_bytes=100)
    np.save(source / "x.npy", np.ones(1))
    (source / "config.json").write_text("{}")
    with pytest.raises(InputError, match="the source changed"):
        build(out, source)
    assert contents(out) == before and not (tmp_path / "out.partial").exists()


def test_overwrite_replaces_only_at_the_end(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, source)
    before = contents(out)
    with pytest.raises(ZeroDivisionError), Stage(out, "cast", source_record(source), {"x": 1}, overwrite=True):
        assert contents(out) == before
        raise ZeroDivisionError
    assert contents(out) == before
    build(out, source, {"x": 1}, overwrite=True)
    document = read_provenance(out)
    assert document is not None and document["options"] == {"x": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]


def test_foreign_directories_are_never_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build(tmp_path / "out", source)  # an empty directory is free to use
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="was not made by this tool"):
        build(mine, source, overwrite=True)
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "x").write_text("x")
    with pytest.raises(InputError, match="no unfinished work of this tool"):
        build(tmp_path / "b", source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a directory"):
        build(tmp_path / "file", source)
    with pytest.raises(InputError, match="cannot be made"):
        build(tmp_path / "file" / "out", source)


def test_the_source_is_never_the_output(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    for out in (source, tmp_path):
        with pytest.raises(InputError, match="holds the source source"):
            build(out, source, overwrite=True)
    assert contents(source) == before


def test_damaged_output_is_not_up_to_date(source: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source)
    (tmp_path / "out" / "model-w.safetensors").unlink()
    with pytest.raises(InputError, match="model-w.safetensors is missing or changed"):
        build(tmp_path / "out", source)
    build(tmp_path / "out", source, overwrite=True)
    assert len(Checkpoint.open(tmp_path / "out").tensors) == 2


def test_an_edit_that_keeps_the_length_is_not_up_to_date(source: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source)
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace("8", "9"))
    with pytest.raises(InputError, match=r"config\.json is missing or changed since; use --overwrite"):
        build(tmp_path / "out", source)
    assert not build(tmp_path / "out", source, overwrite=True).up_to_date
    assert "8" in config.read_text()


def test_a_run_that_fails_before_any_work_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Stage(tmp_path / "out", "cast", source_record(source), {}):
        raise ZeroDivisionError
    assert not list(tmp_path.glob("out*"))


def test_notes_tell_of_an_interrupted_run(source: Path, tmp_path: Path) -> None:
    def interrupted(options: dict[str, Any]) -> None:
        with pytest.raises(ZeroDivisionError), Stage(tmp_path / "out", "cast", source_record(source), options) as stage:
            stage.write_tensors("w", [TensorTask.copy(Checkpoint.open(source), n, dtype="bfloat16") for n in names])
            raise ZeroDivisionError

    names = ("table", "proj")
    interrupted({"dtype": "bfloat16"})
    assert build(tmp_path / "out", source).notes == {"resumed": ["model-w.safetensors"]}
    assert build(tmp_path / "out", source).notes == {}
    shutil.rmtree(tmp_path / "out")
    interrupted({"dtype": "other"})
    assert build(tmp_path / "out", source).notes == {"restarted": "the options (dtype) changed"}


def test_interrupt_leaves_the_work_and_nothing_under_the_final_name(source: Path, tmp_path: Path) -> None:
    checkpoint, out = Checkpoint.open(source), tmp_path / "out"
    build(tmp_path / "whole", source, max_shard_bytes=1000)
    with (
        pytest.raises(KeyboardInterrupt),
        Stage(out, "cast", source_record(source), {"dtype": "bfloat16"}, max_shard_bytes=1000) as stage,
    ):
        good = TensorTask.copy(checkpoint, "proj", dtype="bfloat16")
        bad = TensorTask("table", "bfloat16", (100, 8), interrupt)
        stage.write_tensors("w", [good, bad])
    assert not out.exists()
    assert sorted(os.listdir(tmp_path / "out.partial")) == [
        ".lock",
        "fingerprint.json",
        "model-w-00001-of-00002.safetensors",
        "shards.json",
    ]
    resumed = build(out, source, max_shard_bytes=1000)
    assert resumed.resumed == ["model-w-00001-of-00002.safetensors"]
    assert contents(out) == contents(tmp_path / "whole")


def interrupt(start: int, stop: int) -> np.ndarray[Any, Any]:
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["options", "source", "tool version", "record"])
def test_work_of_another_fingerprint_is_thrown_away(
    source: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = Checkpoint.open(source), tmp_path / "out"
    with pytest.raises(ZeroDivisionError), Stage(out, "cast", source_record(source), {"dtype": "bfloat16"}) as stage:
        stage.write_tensors("old", [TensorTask.copy(checkpoint, "ids")])
        raise ZeroDivisionError
    options = {"dtype": "f"} if what == "options" else None
    if what == "source":
        (source / "config.json").write_text("{}")
    if what == "tool version":
        monkeypatch.setattr(stage_module, "tool_version", lambda: "99")
        monkeypatch.setattr(provenance, "tool_version", lambda: "99")
    if what == "record":
        (tmp_path / "out.partial" / "fingerprint.json").write_text("{")
    resumed = build(out, source, options)
    assert resumed.restarted is not None and what in resumed.restarted
    assert resumed.resumed == []
    assert "model-old.safetensors" not in contents(out)


def test_strays_of_an_interrupted_run_do_not_reach_the_output(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), Stage(out, "cast", source_record(source), {"dtype": "bfloat16"}) as stage:
        (stage.workdir / "model.onnx").write_bytes(b"half of i")
        (stage.workdir / "sub").mkdir()
        (stage.workdir / "sub" / "x.tmp").write_bytes(b"x")
        (stage.workdir / "model-w.safetensors").write_bytes(b"not recorded, so not finished")
        raise ZeroDivisionError
    build(out, source)
    build(tmp_path / "whole", source)
    assert contents(out) == contents(tmp_path / "whole")


def test_kill_between_the_last_write_and_the_rename(source: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source)
    expected = contents(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "out.partial")
    (tmp_path / "out.partial" / ".lock").write_text("1")
    assert build(tmp_path / "out", source).up_to_date
    assert contents(tmp_path / "out") == expected and not (tmp_path / "out.partial").exists()


def test_a_second_run_at_once_refuses(source: Path, tmp_path: Path) -> None:
    with Stage(tmp_path / "out", "cast", source_record(source), {}) as stage:
        with pytest.raises(InputError, match=rf"another run \(pid {os.getpid()}\) is writing it"):
            build(tmp_path / "out", source)
        stage.write_text("a.txt", "a")
    assert contents(tmp_path / "out")["a.txt"] == b"a"


def test_links_share_inodes_and_copies_do_not(source: Path, tmp_path: Path) -> None:
    shard, checkpoint = source / "model.safetensors", Checkpoint.open(source)
    outputs = {}
    for copy in (False, True):
        out = tmp_path / f"out-{copy}"
        with Stage(out, "link", source_record(source), {}, copy=copy) as stage:
            assert stage.link_shard(shard, checkpoint.tensors.values()) == "model.safetensors"
            stage.link_file(source / "config.json")
            assert stage.linked["model.safetensors"] == ("copy" if copy else "hardlink")
        assert os.path.samefile(out / "model.safetensors", shard) != copy
        assert not os.path.samefile(out / "config.json", source / "config.json")
        outputs[copy] = contents(out)
    assert outputs[True] == outputs[False]
    np.testing.assert_array_equal(Checkpoint.open(tmp_path / "out-True").array("ids"), np.arange(7))


def test_clashing_names_are_kept_apart(source: Path, tmp_path: Path) -> None:
    checkpoint, out = Checkpoint.open(source), tmp_path / "out"
    with Stage(out, "one", source_record(source), {}) as stage:
        stage.write_tensors("w", [TensorTask.of("x", np.ones(1, np.float32))])
    first = Checkpoint.open(out)
    with Stage(tmp_path / "two", "two", source_record(out), {}) as stage:
        stage.link_shard(first.files[0], first.tensors.values())
        stage.link_shard(first.files[0], first.tensors.values())
        stage.write_tensors("w", [TensorTask.of("y", np.ones(2, np.float32))])
        with pytest.raises(InputError, match="'y' would be written twice"):
            stage.write_tensors("v", [TensorTask.of("y", np.ones(2, np.float32))])
    assert dict(stage.weight_map) == {"x": "model-w.safetensors", "y": "model-w-2.safetensors"}
    with Stage(tmp_path / "three", "three", source_record(out), {}) as stage:
        stage.write_tensors("w", [TensorTask.of("y", np.ones(2, np.float32))])
        assert stage.link_shard(first.files[0], first.tensors.values()) == "model-source-w.safetensors"
        with pytest.raises(ValueError, match="cannot rename"):
            stage.link_shard(first.files[0], [checkpoint.info("ids")])
    assert sorted(Checkpoint.open(tmp_path / "three").tensors) == ["x", "y"]


def test_links_survive_a_resume(source: Path, tmp_path: Path) -> None:
    checkpoint, shard = Checkpoint.open(source), source / "model.safetensors"
    for attempt in (1, 2):
        try:
            with Stage(tmp_path / "out", "link", source_record(source), {}) as stage:
                stage.link_shard(shard, checkpoint.tensors.values())
                if attempt == 1:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert os.path.samefile(tmp_path / "out.partial" / "model.safetensors", shard)
    assert os.path.samefile(tmp_path / "out" / "model.safetensors", shard)


def test_writing_never_goes_through_a_link(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.model").write_text("original")
    with Stage(tmp_path / "out", "edit", source_record(source), {}) as stage:
        stage.link_file(source / "tokenizer.model")
        stage.write_text("tokenizer.model", "changed")
    assert (source / "tokenizer.model").read_text() == "original"
    assert (tmp_path / "out" / "tokenizer.model").read_text() == "changed"
    document = read_provenance(tmp_path / "out")
    assert document is not None and document["files"]["tokenizer.model"]["size"] == len("changed")


@pytest.mark.parametrize(
    "name", ["../x.json", "/x.json", "provenance.json", ".lock", "model.safetensors.index.json", ""]
)
def test_reserved_and_escaping_names(source: Path, tmp_path: Path, name: str) -> None:
    stage = Stage(tmp_path / "out", "x", source_record(source), {})
    with stage, pytest.raises(ValueError, match="file name"):
        stage.write_json(name, {})


def test_a_disk_too_small_is_refused_before_writing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 500, 500))
    with pytest.raises(InputError, match=r"the shards of 'w' need \d+ bytes, 500 are free: \d+ short"):
        build(tmp_path / "out", source)
    monkeypatch.undo()
    build(tmp_path / "out", source)


def test_files_that_will_be_copied_need_room_too(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = source / "model.safetensors"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 500, 500))
    with Stage(tmp_path / "linked", "x", source_record(source), {}) as stage:
        stage.require_room({}, "", [shard])
    with (
        pytest.raises(InputError, match=rf"need {shard.stat().st_size} bytes, 500 are free"),
        Stage(tmp_path / "copied", "x", source_record(source), {}, copy=True) as stage,
    ):
        stage.require_room({}, "", [shard])


def test_a_disk_that_fills_up_keeps_the_finished_shards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def filling(handle: int, piece: memoryview) -> int:
        if len(piece) > 1000:  # the second shard's
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, piece)

    monkeypatch.setattr(appending.os, "write", filling)
    with pytest.raises(InputError, match="No space left on device.*finished shards are kept") as caught:
        build(tmp_path / "out", source, max_shard_bytes=1000)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    assert build(tmp_path / "out", source, max_shard_bytes=1000).resumed == ["model-w-00001-of-00002.safetensors"]


def test_progress_counts_every_byte(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    build(tmp_path / "out", source, progress=lambda *step: seen.append(step))
    size = (tmp_path / "out" / "model-w.safetensors").stat().st_size
    assert seen[-1] == (size, size, "model-w.safetensors")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
