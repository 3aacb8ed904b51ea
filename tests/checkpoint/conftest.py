"""Small checkpoints and a way to run a script that uses this checkout in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ultramem_deploy

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with two float32 tensors, a 0-d, an empty and an int64 one, and a config.json."""
    directory = tmp_path / "source"
    directory.mkdir()
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "table": rng.standard_normal((100, 8)).astype(np.float32),
        "proj": rng.standard_normal((4, 8)).astype(np.float32),
        "scale": np.array(0.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "ids": np.arange(7, dtype=np.int64),
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt", "made": "here"})
    (directory / "config.json").write_text('{"hidden": 8}\n')
    return directory


@pytest.fixture
def spawn() -> Spawn:
    """spawn(script, *arguments): start Python on a script that can import this checkout."""

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        root = Path(ultramem_deploy.__file__).parents[1]
        command = [sys.executable, "-c", script, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(root)}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    return start
