"""A stage's own resume state: kept for the next run, never published, dropped when the options change."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultramem_deploy.checkpoint import Stage, source_record


def test_resume_files_survive_an_interruption_and_are_not_published(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), Stage(out, "train", source_record(source), {}) as stage:
        stage.resume_file("step").write_text("7")
        raise KeyboardInterrupt
    with Stage(out, "train", source_record(source), {}) as stage:
        assert stage.resume_file("step").read_text() == "7"
        stage.write_text("done.txt", "yes")
    assert sorted(file.name for file in out.iterdir()) == ["done.txt", "provenance.json"]
    with (
        pytest.raises(KeyboardInterrupt),
        Stage(out, "train", source_record(source), {"steps": 2}, overwrite=True) as stage,
    ):
        stage.resume_file("step").write_text("7")
        raise KeyboardInterrupt
    with Stage(out, "train", source_record(source), {"steps": 3}, overwrite=True) as stage:
        assert not stage.resume_file("step").exists()
