from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.conftest import Spawn
from ultramem_deploy.checkpoint import files
from ultramem_deploy.errors import InputError


def test_link_or_copy_follows_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert files.link_or_copy(tmp_path / "link", tmp_path / "out", copy=False) == "hardlink"
    assert not (tmp_path / "out").is_symlink() and os.path.samefile(tmp_path / "out", tmp_path / "real")
    assert files.link_or_copy(tmp_path / "real", tmp_path / "out", copy=False) == "hardlink"
    assert sorted(os.listdir(tmp_path)) == ["link", "out", "real"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_cannot_be_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "real").write_text("x")
    assert files.link_or_copy(tmp_path / "real", tmp_path / "out", copy=False) in ("reflink", "copy")
    assert (tmp_path / "out").read_text() == "x" and not os.path.samefile(tmp_path / "out", tmp_path / "real")


def test_across_filesystems(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev or not os.access(shm, os.W_OK):
        pytest.skip("no second filesystem")
    other = shm / f"ultramem-deploy-test-{os.getpid()}"
    try:
        other.write_text("x")
        assert files.link_or_copy(other, tmp_path / "out", copy=False) == "copy"
    finally:
        other.unlink(missing_ok=True)
    assert (tmp_path / "out").read_text() == "x"


COPY = """
import resource, sys
from pathlib import Path
from ultramem_deploy.checkpoint import files
from ultramem_deploy.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    files.link_or_copy(Path(sys.argv[1]), Path(sys.argv[2]), copy=True)
except InputError as error:
    print(error)
"""


def test_a_copy_that_a_limit_cuts_short_is_an_error(tmp_path: Path, spawn: Spawn) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))
    said, trouble = spawn(COPY, tmp_path / "model.safetensors", tmp_path / "out").communicate(timeout=60)
    assert "out: cannot be written: File too large (1048576 bytes needed" in said, said + trouble
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_copy_of_another_size_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "copyfileobj", lambda reader, writer, _: writer.write(reader.read(10)))
    with pytest.raises(InputError, match="out: cannot be written: 10 of 1000 bytes arrived"):
        files.link_or_copy(tmp_path / "real", tmp_path / "out", copy=True)
    assert os.listdir(tmp_path) == ["real"]


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: cannot be read"):
        files.link_or_copy(tmp_path / "gone", tmp_path / "out", copy=False)
    with pytest.raises(InputError, match="gone: cannot be read"):
        files.sha256_file(tmp_path / "gone")


def test_failed_writes_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="a.json: cannot be written: No space left"):
        files.write_atomic(tmp_path / "a.json", b"new")
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_a_file_on_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There not even a file that is not there can be unlinked."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(InputError, match=r"out: cannot be written: Read-only .*check the directory and its perm"):
        files.write_atomic(tmp_path / "out", b"x")
