"""A stage killed without warning, in a process of its own, and run again."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ultramem_deploy.checkpoint import Checkpoint

SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from ultramem_deploy.checkpoint import Stage, TensorTask, source_record
source, out, stop_at = sys.argv[1], sys.argv[2], sys.argv[3]

def task(number):
    def rows(start, stop):
        if str(number) == stop_at and start > 0:
            Path(out + ".marker").touch()
            time.sleep(60)
        return np.random.default_rng([number, start]).standard_normal((stop - start, 1024)).astype(np.float32)
    return TensorTask(f"layer.{number}", "float32", (10_000, 1024), rows)

with Stage(out, "make", source_record(source), {"x": 1}, max_shard_bytes=50 << 20, jobs=2) as stage:
    stage.write_tensors("w", [task(number) for number in range(3)])
print(",".join(stage.resumed))
"""


def wait_for(file: Path, process: Any) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the script did not get there: {process.communicate()}")
        time.sleep(0.02)


def test_resume_after_sigkill_gives_the_same_bytes(source: Path, tmp_path: Path, spawn: Any) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    killed = spawn(SCRIPT, source, out, 1)
    wait_for(tmp_path / "out.marker", killed)
    second = spawn(SCRIPT, source, out, "never")
    _, refused = second.communicate(timeout=60)
    assert second.returncode != 0 and f"another run (pid {killed.pid}) is writing it" in refused
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not out.exists()
    first = partial / "model-w-00001-of-00003.safetensors"
    inode = first.stat().st_ino
    assert sorted(file.name for file in partial.glob("*.safetensors")) == [first.name]
    assert (partial / "model-w-00002-of-00003.safetensors.part").exists()

    resumed, errors = spawn(SCRIPT, source, out, "never").communicate(timeout=60)
    assert resumed.strip() == first.name, errors
    assert (out / first.name).stat().st_ino == inode
    assert not partial.exists()

    spawn(SCRIPT, source, tmp_path / "whole", "never").communicate(timeout=60)
    names = sorted(file.name for file in out.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "whole").iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len(Checkpoint.open(out).tensors) == 3
