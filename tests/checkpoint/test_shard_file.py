from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import ultramem_deploy.checkpoint.appending as appending
import ultramem_deploy.checkpoint.journal as journal
import ultramem_deploy.checkpoint.shard_file as shard_file
import ultramem_deploy.checkpoint.writer as writer
from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.checkpoint.chunks import Threads
from ultramem_deploy.checkpoint.shard_file import write_shard
from ultramem_deploy.errors import InputError


def counting(name: str, rows: int, columns: int) -> TensorTask:
    """A float32 tensor whose element is its own flat index."""

    def compute(start: int, stop: int) -> np.ndarray[Any, Any]:
        return np.arange(start * columns, stop * columns, dtype=np.float32).reshape(-1, columns)

    return TensorTask(name, "float32", (rows, columns), compute)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "half": np.arange(5, dtype=np.float16),
        "wide": np.arange(6, dtype=np.int64).reshape(2, 3),
        "byte": np.arange(3, dtype=np.uint8),
        "flag": np.array([True, False]),
        "scalar": np.array(7, np.int32),
        "empty": np.zeros((0, 4), np.float32),
        "flat": np.zeros((4, 0), np.float64),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
        "né": np.ones(1, np.float32),
    }
    file = tmp_path / "x.safetensors"
    digest, _ = write_shard(file, [TensorTask.of(name, array) for name, array in arrays.items()], Threads(2))
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    found = load_file(file)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    for info in Checkpoint.open(file).tensors.values():
        assert info.offset % max(1, info.nbytes and info.nbytes // math.prod(info.shape)) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]


def test_torch_reads_bfloat16(tmp_path: Path) -> None:
    safetensors_torch = pytest.importorskip("safetensors.torch")
    values = np.linspace(-3, 3, 1000, dtype=np.float32).astype(ml_dtypes.bfloat16)
    write_shard(tmp_path / "x.safetensors", [TensorTask.of("a", values)], Threads(1))
    tensor = safetensors_torch.load_file(tmp_path / "x.safetensors")["a"]
    np.testing.assert_array_equal(tensor.float().numpy(), values.astype(np.float32))


def test_jobs_never_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 4096)
    digests = set()
    for jobs in (1, 2, 7):
        tasks = [counting("a", 1000, 13), counting("b", 17, 1000)]
        digests.add(write_shard(tmp_path / f"{jobs}.safetensors", tasks if jobs != 2 else tasks[::-1], Threads(jobs)))
    assert len(digests) == 1


def test_the_window_bounds_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 400)
    lock, ahead, worst = threading.Lock(), 0, 0

    def compute(start: int, stop: int) -> np.ndarray[Any, Any]:
        nonlocal ahead, worst
        with lock:
            ahead += 1
            worst = max(worst, ahead)
        return np.zeros((stop - start, 100), np.float32)

    def on_bytes(count: int) -> None:
        nonlocal ahead
        time.sleep(0.001)
        with lock:
            ahead -= count == 400

    write_shard(tmp_path / "x.safetensors", [TensorTask("a", "float32", (100, 100), compute)], Threads(3), on_bytes)
    assert worst <= 4


def test_copy_renames_and_casts(source: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(source)
    tasks = [
        TensorTask.copy(checkpoint, "table", "t.renamed", "bfloat16"),
        TensorTask.copy(checkpoint, "ids"),
        TensorTask.copy(checkpoint, "scale", dtype="float64"),
    ]
    write_shard(tmp_path / "x.safetensors", tasks, Threads(2))
    found = Checkpoint.open(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found.array("t.renamed"), checkpoint.array("table").astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(found.array("ids"), np.arange(7))
    assert found.array("scale") == 0.5
    with pytest.raises(InputError, match="tensor 'ids': int64 is not cast to float32"):
        TensorTask.copy(checkpoint, "ids", dtype="float32")
    with pytest.raises(InputError, match="unknown dtype 'half'"):
        TensorTask.copy(checkpoint, "ids", dtype="half")


def test_rows_of_another_shape_or_dtype_are_a_bug(tmp_path: Path) -> None:
    for wrong in (np.zeros((2, 3), np.float64), np.zeros((2, 2), np.float32)):
        task = TensorTask("a", "float32", (2, 3), lambda start, stop, wrong=wrong: wrong)  # type: ignore[misc]
        with pytest.raises(TypeError, match="tensor 'a'"):
            write_shard(tmp_path / "x.safetensors", [task], Threads(1))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(appending.os, "write", full)
    with pytest.raises(
        InputError, match=r"x.safetensors: cannot be written: No space left.*\d+ bytes needed, \d+ bytes free"
    ):
        write_shard(tmp_path / "x.safetensors", [counting("a", 2, 2)], Threads(1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_gives_one_line(tmp_path: Path, spawn: Any) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.chunks import Threads
from ultramem_deploy.checkpoint.shard_file import write_shard
from ultramem_deploy.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_shard(Path(sys.argv[1]), [TensorTask.of("a", np.zeros(1_000_000, np.uint8))], Threads(2))
except InputError as error:
    print(error)
"""
    out, err = spawn(script, tmp_path / "x.safetensors").communicate(timeout=60)
    assert "x.safetensors: cannot be written: File too large" in out and len(out.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


# VmHWM, not ru_maxrss: a child starts with the ru_maxrss of the process that spawned it.
PEAK = """
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])
"""
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@linux
def test_peak_memory_is_a_few_chunks(tmp_path: Path, spawn: Any) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.chunks import Threads
from ultramem_deploy.checkpoint.shard_file import write_shard
rows = lambda start, stop: np.full((stop - start, 1000), start, np.float32)
before = peak()
write_shard(Path(sys.argv[1]), [TensorTask("a", "float32", (150_000, 1000), rows)], Threads(2))
print(peak() - before)
"""
    file = tmp_path / "x.safetensors"
    out, err = spawn(PEAK + script, file).communicate(timeout=60)
    size = file.stat().st_size
    file.unlink()
    assert size > 600_000_000
    assert writer.CHUNK_BYTES < int(out) * 1024 < 7 * writer.CHUNK_BYTES, err


@linux
def test_copying_a_mapped_tensor_does_not_grow_resident_memory(tmp_path: Path, spawn: Any) -> None:
    script = """
import sys
from pathlib import Path
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.chunks import Threads
from ultramem_deploy.checkpoint.shard_file import write_shard
checkpoint = Checkpoint.open(sys.argv[1])
before = peak()
write_shard(Path(sys.argv[2]), [TensorTask.copy(checkpoint, "a", dtype="float16")], Threads(2))
print(peak() - before)
"""
    tensor = TensorTask("a", "float32", (50_000, 1000), lambda start, stop: np.ones((stop - start, 1000), np.float32))
    write_shard(tmp_path / "in.safetensors", [tensor], Threads(2))
    out, err = spawn(PEAK + script, tmp_path / "in.safetensors", tmp_path / "out.safetensors").communicate(timeout=60)
    for name in ("in", "out"):
        (tmp_path / f"{name}.safetensors").unlink()
    assert writer.CHUNK_BYTES < int(out) * 1024 < 12 * writer.CHUNK_BYTES, err


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 KiB, a line in the journal for each, direct I/O for every file."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(appending, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(journal, "JOURNAL_BYTES", 4096)
    monkeypatch.setattr(shard_file, "DIRECT_BYTES", 0)


class Stopped(Exception):
    pass


def stopping(name: str, rows: int, columns: int, at: int) -> TensorTask:
    """As `counting`, but fails at the chunk that holds row `at`."""
    whole = counting(name, rows, columns)

    def compute(start: int, stop: int) -> np.ndarray[Any, Any]:
        if start <= at < stop:
            raise Stopped
        return whole.rows(start, stop)

    return TensorTask(name, "float32", (rows, columns), compute)


def interrupted(folder: Path, at: int) -> tuple[list[TensorTask], Path, str]:
    """The tasks of a file, where a first run left off at row `at` of the second tensor, and the whole file's hash."""
    tasks = [counting("a", 17, 1001), counting("b", 1000, 13)]
    whole, _ = write_shard(folder / "whole.safetensors", tasks, Threads(2))
    file = folder / "x.safetensors"
    with pytest.raises(Stopped):
        write_shard(file, [tasks[0], stopping("b", 1000, 13, at)], Threads(2))
    assert not file.exists()
    return tasks, file, whole


@pytest.mark.parametrize("at", [0, 191, 192, 500, 999])
@pytest.mark.usefixtures("small_steps")
def test_an_interrupted_file_is_continued(tmp_path: Path, at: int) -> None:
    tasks, file, whole = interrupted(tmp_path, at)
    computed: list[int] = []

    def watched(start: int, stop: int) -> np.ndarray[Any, Any]:
        computed.append(start)
        return tasks[1].rows(start, stop)

    reported = 0

    def on_bytes(count: int) -> None:
        nonlocal reported
        reported += count

    second = TensorTask("b", "float32", (1000, 13), watched)
    digest, continued = write_shard(file, [tasks[0], second], Threads(1), on_bytes)
    assert digest == whole == hashlib.sha256(file.read_bytes()).hexdigest()
    assert continued > 0 and continued % 4096 == 0
    assert reported == file.stat().st_size
    header = file.stat().st_size - 17 * 1001 * 4 - 1000 * 13 * 4
    first = (continued - header - 17 * 1001 * 4) // (13 * 4)
    assert min(computed) <= max(first, 0) < min(computed) + 192, "continues with the chunk that holds the next byte"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["whole.safetensors", "x.safetensors"]


@pytest.mark.parametrize(
    "damage", ["a byte", "the tail", "the journal's tail", "the journal", "the part", "another layout"]
)
@pytest.mark.usefixtures("small_steps")
def test_only_what_is_verified_is_continued(tmp_path: Path, damage: str) -> None:
    tasks, file, whole = interrupted(tmp_path, 900)
    part, lines = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.journal")
    noted = [json.loads(line)["bytes"] for line in lines.read_text().splitlines()]
    assert len(noted) > 10
    if damage == "a byte":
        with open(part, "r+b") as stream:
            stream.seek(noted[4] + 7)
            stream.write(b"\xff")
    elif damage == "the tail":
        with open(part, "r+b") as stream:
            stream.truncate(noted[6] + 100)
    elif damage == "the journal's tail":
        lines.write_text(lines.read_text()[:-30])
    elif damage == "the journal":
        lines.write_text("[]\n")
    elif damage == "the part":
        part.unlink()
    else:
        tasks.append(counting("c", 3, 3))
        whole, _ = write_shard(tmp_path / "other.safetensors", tasks, Threads(2))
    digest, continued = write_shard(file, tasks, Threads(2))
    assert digest == whole == hashlib.sha256(file.read_bytes()).hexdigest()
    expected = {"a byte": noted[4], "the tail": noted[6], "the journal's tail": noted[-2]}
    assert continued == expected.get(damage, 0)


@pytest.mark.usefixtures("small_steps")
def test_a_continued_run_may_be_interrupted_too(tmp_path: Path) -> None:
    tasks, file, whole = interrupted(tmp_path, 300)
    for at in (500, 700, 990):
        with pytest.raises(Stopped):
            write_shard(file, [tasks[0], stopping("b", 1000, 13, at)], Threads(2))
        shutil.copy(file.with_name(f"{file.name}.journal"), tmp_path / f"{at}")
    assert len({(tmp_path / f"{at}").read_text() for at in (500, 700, 990)}) == 3
    assert write_shard(file, tasks, Threads(2))[0] == whole


@pytest.mark.usefixtures("small_steps")
def test_a_filesystem_without_direct_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = write_shard(tmp_path / "direct.safetensors", [counting("a", 1000, 13)], Threads(2))
    real_open, real_write = os.open, os.write

    def refusing(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, mode)

    def picky(handle: int, data: Any) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(appending.os, "open", refusing)
        assert write_shard(tmp_path / "refused.safetensors", [counting("a", 1000, 13)], Threads(2))[0] == whole
    with monkeypatch.context() as patch:
        patch.setattr(appending.os, "write", picky)
        assert write_shard(tmp_path / "sectors.safetensors", [counting("a", 1000, 13)], Threads(2))[0] == whole
