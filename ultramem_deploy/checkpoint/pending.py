"""A source that somebody else saved, hashed while the stage that reads it is at work already."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint.files import sha256_file
from ultramem_deploy.checkpoint.provenance import (
    SourceRecord,
    fingerprint,
    read_provenance,
    source_files,
    source_record,
)
from ultramem_deploy.errors import InputError


class PendingSource:
    """As `SourceRecord`, but `record` waits for the hashes.

    Until then `marks` (size, modification time and inode of each file) tell whether it is the source that an
    interrupted run was reading. InputError where there is nothing to hash.
    """

    def __init__(self, path: Path, weights: Sequence[Path] | None = None) -> None:
        self.path = path
        self._root, names = source_files(path, weights)
        self.marks = {name: _mark(self._root / name) for name in names}
        self._stop = threading.Event()
        self._hashes: dict[str, Future[str]] = {}

    @property
    def name(self) -> str:
        return self.path.name if self.path.name not in ("", "..") else self.path.resolve().name

    def start(self) -> None:
        """Begin to hash, two files at a time."""
        with_threads = ThreadPoolExecutor(2, thread_name_prefix="source")
        self._hashes = {
            name: with_threads.submit(sha256_file, self._root / name, self._stop.is_set) for name in self.marks
        }
        with_threads.shutdown(wait=False)

    def stop(self) -> None:
        """Do not finish: nobody needs the hashes any more."""
        self._stop.set()
        for pending in self._hashes.values():
            pending.cancel()

    @cached_property
    def record(self) -> SourceRecord:
        """What the source was; InputError where a file changed since `marks` were taken."""
        if not self._hashes:
            self.start()
        files: dict[str, dict[str, Any]] = {}
        for name, pending in self._hashes.items():
            files[name] = {"size": self.marks[name][0], "sha256": pending.result()}
            if _mark(self._root / name) != self.marks[name]:
                raise InputError(f"{self._root / name}: changed while it was read; let it be, and run again")
        kind = "directory" if self.path.is_dir() else "file"
        return SourceRecord(self.name, kind, files, fingerprint(files), (), self.path)


def _mark(file: Path) -> list[int]:
    try:
        state = file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    return [state.st_size, state.st_mtime_ns, state.st_ino]


def identified(path: Path, weights: Sequence[Path] | None = None) -> SourceRecord | PendingSource:
    """The source at `path` (`weights` as for `source_record`): its record where a stage of ours made it.

    Raises InputError as `source_record` does.
    """
    if path.is_dir() and read_provenance(path) is not None:
        return source_record(path, weights=weights)
    return PendingSource(path, weights)
