"""A file written front to back in blocks, hashed beside the writing; large ones go around the page cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 4 << 20
"""Bytes written and hashed at a time; two blocks are held."""
DIRECT_BYTES = 256 << 20
"""Files from this size on go around the page cache."""


class HashedFile:
    """Appends to `path` from byte `start` on, a multiple of 4096; `digest` covers what lies before.

    Where the filesystem has direct I/O and `direct` is asked for, bytes go to the device without passing the page
    cache: on two cores that copying costs as much as computing, and a table larger than memory would only push out what
    others need. `end` is the length of what was written, whole blocks. Raises OSError.
    """

    def __init__(self, path: Path, start: int, digest: hashlib._Hash, direct: bool) -> None:
        self.end, self._digest = start, digest
        self._handle = open_to_append(path, direct)
        self._blocks = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(2)]  # page-aligned, as direct I/O wants
        self._filled, self._turn = 0, 0
        self._hashed: list[Future[None] | None] = [None, None]
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        os.ftruncate(self._handle, start)
        os.lseek(self._handle, start, os.SEEK_SET)

    def write(self, piece: memoryview) -> None:
        """Append `piece`, which may be reused at once."""
        while piece:
            count = min(len(piece), BLOCK_BYTES - self._filled)
            self._blocks[self._turn][self._filled : self._filled + count] = piece[:count]
            self._filled += count
            piece = piece[count:]
            if self._filled == BLOCK_BYTES:
                self._flush()

    def sync(self) -> str:
        """Make the blocks written so far durable; the SHA-256 of the file up to `end`, as hex."""
        self._settle()
        os.fdatasync(self._handle)
        return self._digest.hexdigest()

    def finish(self) -> str:
        """Write what is left, make the file durable; its SHA-256 as hex."""
        if self._filled:
            _without_direct(self._handle)  # the last block has any length
            self._flush()
        self._settle()
        os.fsync(self._handle)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Give up the file and the thread."""
        self._hasher.shutdown(wait=True)
        os.close(self._handle)

    def _flush(self) -> None:
        block = memoryview(self._blocks[self._turn])[: self._filled]
        self._hashed[self._turn] = self._hasher.submit(self._digest.update, block)
        _write_all(self._handle, block)
        self.end += self._filled
        self._filled, self._turn = 0, 1 - self._turn
        self._wait(self._turn)

    def _settle(self) -> None:
        for turn in range(2):
            self._wait(turn)

    def _wait(self, turn: int) -> None:
        pending, self._hashed[turn] = self._hashed[turn], None
        if pending is not None:
            pending.result()


def open_to_append(path: Path, direct: bool) -> int:
    """A handle that writes `path`, around the page cache where that is asked for and possible."""
    flags = os.O_WRONLY | os.O_CREAT
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT, 0o666)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
    return os.open(path, flags, 0o666)


def _without_direct(handle: int) -> None:
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~getattr(os, "O_DIRECT", 0))


def _write_all(handle: int, block: memoryview) -> None:
    while block:
        try:
            block = block[os.write(handle, block) :]
        except OSError as error:
            # A device with larger sectors, or a short write that left the position between two of them.
            if error.errno != errno.EINVAL or not fcntl.fcntl(handle, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
                raise
            _without_direct(handle)
