"""Files written so that a reader sees the old or the new one, never a part; links, copies and hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ultramem_deploy.errors import InputError

_BLOCK = 4 << 20
_AHEAD = 16 << 20
_FICLONE = 0x40049409  # ioctl that shares the extents of two files (btrfs, xfs, bcachefs); Linux only
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256_file(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file as hex, read in blocks (hashing releases the GIL); InputError when it cannot be read.

    Gives up, with whatever it has, as soon as `stopped` says so.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    try:
        with open(path, "rb", buffering=0) as stream:
            while not stopped() and (count := stream.readinto(buffer)):
                # The kernel reads what comes next while this is hashed.
                os.posix_fadvise(stream.fileno(), stream.tell(), _AHEAD, os.POSIX_FADV_WILLNEED)
                digest.update(buffer[:count])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` through a temporary name: no reader sees a part, no hard link is written through."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # on a read-only disk even this fails
            temporary.unlink(missing_ok=True)
        raise write_failed(path, error, len(data)) from None


def write_failed(path: Path, error: OSError, needed: int) -> InputError:
    """The one-line error for a failed write of `needed` bytes: the file, bytes needed and free, what to do."""
    try:
        free = f"{shutil.disk_usage(path.parent).free} bytes free"
    except OSError:
        free = "free space unknown"
    advice = "free some space or choose another directory, then run again: finished shards are kept"
    if error.errno not in _FULL:
        advice = "check the directory and its permissions, then run again"
    return InputError(f"{path}: cannot be written: {error.strerror or error} ({needed} bytes needed, {free}); {advice}")


def require_space(directory: Path, needed: int, what: str, advice: str = "") -> None:
    """InputError where the filesystem of `directory` has fewer than `needed` bytes free; `advice`: what else helps."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"{directory}: {what} need {needed} bytes, {free} are free: {needed - free} short;"
            f" free some space or choose another directory{advice and f', or {advice}'}"
        )


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the filesystem can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path, copy: bool) -> str:
    """Make `target` hold what `source` holds: "hardlink", or "reflink" or "copy" where links cannot be; says which.

    `copy` asks for a file of its own, sharing nothing. InputError when the file can neither be linked nor copied.
    """
    real = source.resolve()  # link(2) would link a symbolic link, not the file behind it
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        size = real.stat().st_size
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from None
    try:
        how = "copy" if copy else _share(real, temporary)
        if how == "copy":
            require_space(target.parent, size, source.name)
            _duplicate(real, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # replacing a file by a link to itself leaves both names
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_failed(target, error, size) from None
    return how


def _share(source: Path, target: Path) -> str:
    try:
        os.link(source, target)
        return "hardlink"
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    try:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        return "reflink"
    except OSError:
        target.unlink(missing_ok=True)
        return "copy"


def _duplicate(source: Path, target: Path) -> None:
    # Buffered: a raw stream may write a part of a block (at a file size limit, say) and report it in its result alone.
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
        writer.flush()
        os.fsync(writer.fileno())
        expected, found = os.fstat(reader.fileno()).st_size, os.fstat(writer.fileno()).st_size
    if found != expected:
        raise OSError(errno.EIO, f"{found} of {expected} bytes arrived")


def remove_children(directory: Path, keep: Callable[[str], bool]) -> None:
    """Delete what lies in `directory`, at any depth, except files whose relative name `keep` accepts."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            file = Path(folder, name)
            if not keep(file.relative_to(directory).as_posix()):
                file.unlink()
        if Path(folder) != directory and not os.listdir(folder):
            os.rmdir(folder)


def files_below(directory: Path) -> list[str]:
    """Relative names of every file in `directory`, at any depth, sorted."""
    found = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    return sorted(file.relative_to(directory).as_posix() for file in found)
