"""The benchmarks' own C++ leaves nothing in the folder of temporary files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from benchmarks import native
from benchmarks.rows import TASKS, Fill

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")


def test_tasks_run_when_their_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tasks = native.Tasks("touch.cpp")
    assert list(tmp_path.iterdir()) == []
    words = torch.zeros(1000, dtype=torch.int64)
    tasks.run("fill_task", Fill(words.data_ptr(), len(words), TASKS), TASKS)
    assert words.unique().numel() == len(words), "every word is filled with its own number"
