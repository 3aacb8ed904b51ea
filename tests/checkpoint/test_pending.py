"""Sources that are hashed while a stage is at work already."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ultramem_deploy.checkpoint.pending as pending
from ultramem_deploy.checkpoint import (
    Checkpoint,
    PendingSource,
    Stage,
    TensorTask,
    identified,
    read_provenance,
    source_record,
)
from ultramem_deploy.errors import InputError


def build(out: Path, source: Path, stop: bool = False) -> Stage:
    with Stage(out, "cast", identified(source), {}) as stage:
        if not stage.up_to_date:
            stage.write_tensors("w", [TensorTask.copy(Checkpoint.open(source), "table", dtype="bfloat16")])
            if stop:
                raise ZeroDivisionError
    return stage


def interrupt(out: Path, source: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        build(out, source, stop=True)


def test_it_ends_as_the_same_record(source: Path, tmp_path: Path) -> None:
    assert identified(source).record == source_record(source)  # type: ignore[union-attr]
    build(tmp_path / "out", source)
    with Stage(tmp_path / "other", "cast", source_record(source), {}) as stage:
        stage.write_tensors("w", [TensorTask.copy(Checkpoint.open(source), "table", dtype="bfloat16")])
    assert read_provenance(tmp_path / "out") == read_provenance(tmp_path / "other")
    assert build(tmp_path / "out", source).up_to_date
    assert not isinstance(identified(tmp_path / "out"), PendingSource), "our own stages record their hashes"


def test_work_goes_on_while_the_source_is_hashed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, real = threading.Event(), pending.sha256_file

    def slow(*arguments: Any) -> str:
        assert written.wait(60), "the stage waits for the hashes"
        return real(*arguments)

    monkeypatch.setattr(pending, "sha256_file", slow)
    with Stage(tmp_path / "out", "cast", identified(source), {}) as stage:
        stage.write_tensors("w", [TensorTask.of("x", np.ones(3, np.float32))])
        written.set()
    assert (tmp_path / "out").is_dir()


def test_an_interrupted_run_is_known_by_its_files_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(tmp_path / "out", source)
    assert build(tmp_path / "out", source).resumed == ["model-w.safetensors"]


@pytest.mark.parametrize("how", ["another time", "another length", "another file"])
def test_a_changed_source_starts_over(source: Path, tmp_path: Path, how: str) -> None:
    interrupt(tmp_path / "out", source)
    config = source / "config.json"
    if how == "another time":
        os.utime(config, ns=(1, 1))
    elif how == "another length":
        config.write_text("{}")
    else:
        (source / "copy").write_bytes(config.read_bytes())
        os.replace(source / "copy", config)
    stage = build(tmp_path / "out", source)
    assert stage.restarted == "the source changed" and not stage.resumed


def test_a_source_that_changes_meanwhile_is_refused(source: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"config\.json: changed while it was read; let it be, and run again"),
        Stage(tmp_path / "out", "cast", identified(source), {}) as stage,
    ):
        stage.write_text("a.txt", "a")
        (source / "config.json").write_text('{"hidden": 9}\n')
    assert not (tmp_path / "out").exists()


def test_a_failed_stage_does_not_finish_the_hashes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[Any] = []
    monkeypatch.setattr(pending, "sha256_file", lambda file, stopped: stops.append(stopped) or "")
    interrupt(tmp_path / "out", source)
    assert stops and all(stopped() for stopped in stops)
