"""Processes compute the same bytes as threads, fail as they do, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ultramem_deploy.checkpoint.executors as executors
import ultramem_deploy.checkpoint.writer as writer
from tests.conftest import Written
from tests.test_memory_budget import wide
from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.checkpoint.budget import processes_within
from ultramem_deploy.checkpoint.chunks import Threads
from ultramem_deploy.checkpoint.executors import open_crew
from ultramem_deploy.checkpoint.portable import NotPortableError, packed, unpacked
from ultramem_deploy.checkpoint.processes import Processes
from ultramem_deploy.checkpoint.shard_file import write_shard
from ultramem_deploy.errors import InputError
from ultramem_deploy.pipeline import convert, fold


def made(name: str, rows: int, compute: Callable[[int, int], np.ndarray[Any, Any]] | None = None) -> TensorTask:
    def numbers(start: int, stop: int) -> np.ndarray[Any, Any]:
        return np.arange(start * 100, stop * 100, dtype=np.float32).reshape(-1, 100)

    return TensorTask(name, "float32", (rows, 100), compute or numbers)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 10_000)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "checkpoint.worker" in " ".join(child.cmdline())]


@pytest.mark.parametrize("jobs", [1, 3])
def test_processes_write_what_threads_write(tmp_path: Path, jobs: int) -> None:
    tasks = [made("a", 301), TensorTask.of("b", np.arange(7)), made("c", 3)]
    expected, _ = write_shard(tmp_path / "threads.safetensors", tasks, Threads(2))
    with open_crew("processes", tasks, jobs) as crew:
        assert isinstance(crew, Processes) and len(children()) == jobs
        assert write_shard(tmp_path / "processes.safetensors", tasks, crew)[0] == expected
        assert write_shard(tmp_path / "again.safetensors", tasks[:1], crew)[0] != expected
    assert not children()


def test_only_large_work_starts_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_crew("local", [made("a", 300)], 2) as crew:
        assert isinstance(crew, Threads)
    monkeypatch.setattr(executors, "PROCESSES_FROM", 1000)
    with open_crew("local", [made("a", 300)], 1) as crew:
        assert isinstance(crew, Threads)
    with open_crew("local", [made("a", 300)], 2) as crew:
        assert isinstance(crew, Processes)


@pytest.mark.parametrize("tasks", [[], [TensorTask.of("a", np.arange(3))], [made("a", 0)]])
def test_nothing_to_compute_starts_nothing(tasks: list[TensorTask], tmp_path: Path) -> None:
    with open_crew("processes", tasks, 2) as crew:
        assert isinstance(crew, Threads)
        write_shard(tmp_path / "x.safetensors", tasks, crew)


def test_an_error_is_the_tasks_own(tmp_path: Path) -> None:
    def refuse(start: int, stop: int) -> np.ndarray[Any, Any]:
        raise InputError(f"tensor 'a': row {start} is wrong")

    for kind, problem in ((InputError, refuse), (TypeError, lambda start, stop: np.zeros(3))):
        tasks = [made("a", 300, problem)]
        with pytest.raises(kind, match="tensor 'a'"), open_crew("processes", tasks, 2) as crew:
            write_shard(tmp_path / "x.safetensors", tasks, crew)
    assert not list(tmp_path.iterdir()) and not children()


def test_a_killed_process_gives_one_line(tmp_path: Path) -> None:
    def suicide(start: int, stop: int) -> np.ndarray[Any, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    tasks = [made("a", 300, suicide)]
    with (
        pytest.raises(InputError, match="--jobs: a process that computed tensor 'a' was killed"),
        open_crew("processes", tasks, 2) as crew,
    ):
        write_shard(tmp_path / "x.safetensors", tasks, crew)
    assert not children()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path, spawn: Any) -> None:
    script = """
import sys, time
import numpy as np
from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.executors import open_crew
task = TensorTask("a", "float32", (10, 10), lambda start, stop: np.zeros((stop - start, 10), np.float32))
with open_crew("processes", [task], 2) as crew:
    print(*(worker.pid for worker, _ in crew._workers), flush=True)
    time.sleep(60)
"""
    process = spawn(script)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the process that it worked for"
        time.sleep(0.05)


def test_an_interruption_from_the_terminal_is_the_parents_alone(spawn: Any) -> None:
    """It goes to the whole group of processes, and a worker may be at its imports, where it would print a traceback."""
    script = """
import os, signal, time
import numpy as np
from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.executors import open_crew
task = TensorTask("a", "float32", (10, 10), lambda start, stop: np.zeros((stop - start, 10), np.float32))
os.setpgid(0, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with open_crew("processes", [task], 2):
    try:
        time.sleep(0.03)
        os.killpg(0, signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1)
"""
    process = spawn(script)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


def test_checkpoints_travel_and_large_arrays_do_not(source: Path) -> None:
    task = TensorTask.copy(Checkpoint.open(source), "table", dtype="bfloat16")
    (same,) = unpacked(packed([task]))
    np.testing.assert_array_equal(same.rows(3, 9), task.rows(3, 9))
    large = np.zeros(1 << 18)
    with pytest.raises(NotPortableError, match="2097152 bytes"):
        packed([made("a", 3, lambda start, stop: large[start:stop])])
    with (
        pytest.raises(InputError, match="--executor processes: the source cannot be read from other processes"),
        open_crew("processes", [made("a", 3, lambda start, stop: large[start:stop])], 2),
    ):
        pass
    assert unpacked(packed([TensorTask.of("a", large)])) == [None]


def test_the_budget_bounds_the_processes() -> None:
    task = made("a", 300)
    chunk = task.chunk_nbytes
    assert processes_within([task], 8, None) == 8
    assert processes_within([task], 8, chunk * 100) == 8
    assert processes_within([task], 8, chunk * 5) == 2
    assert processes_within([task], 8, chunk * 5 + 100, held=100) == 1
    assert processes_within([task], 8, chunk) == 1
    with pytest.raises(InputError, match="--memory-budget: one chunk of tensor 'a'"):
        processes_within([task], 8, chunk - 1)


def test_convert_and_fold_by_any_executor(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    source = written(wide(32 * 32))
    for executor, jobs in (("threads", 1), ("processes", 3)):
        fold(source, tmp_path / executor, executor=executor, jobs=jobs)
        convert(source, tmp_path / f"{executor}-converted", dtype="float16", executor=executor, jobs=jobs)
    for suffix in ("", "-converted"):
        for file in (tmp_path / f"threads{suffix}").iterdir():
            assert file.read_bytes() == (tmp_path / f"processes{suffix}" / file.name).read_bytes(), file.name
