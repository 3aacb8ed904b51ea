"""How far a file that is being written can be trusted: lengths with the hash of all bytes before, one line each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from ultramem_deploy.checkpoint import appending
from ultramem_deploy.checkpoint.files import fsync_directory

PART_SUFFIX, JOURNAL_SUFFIX = ".part", ".journal"
JOURNAL_BYTES = 256 << 20
"""At most about so many bytes are computed again after a kill."""


class Journal:
    """The growing file of `path` and the record of its verified lengths; the next run continues from the longest.

    What it says is believed only where the bytes on the disk have the hash it gives: a torn write costs the work since
    the line before, never a wrong byte.
    """

    def __init__(self, path: Path) -> None:
        self.part = path.with_name(path.name + PART_SUFFIX)
        self._file = path.with_name(path.name + JOURNAL_SUFFIX)
        self._noted = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was noted that a next run could continue from."""
        return not self._lines()

    @property
    def held_bytes(self) -> int:
        """Bytes that the growing file takes on the disk."""
        return self.part.stat().st_size if self.part.exists() else 0

    def is_due(self, end: int) -> bool:
        """Whether a length of `end` bytes is worth a line."""
        return end - self._noted >= JOURNAL_BYTES

    def note(self, end: int, sha256: str) -> None:
        """The first `end` bytes are on the disk and have this hash."""
        first = not self._file.exists()
        with open(self._file, "a", encoding="ascii") as stream:
            stream.write(json.dumps({"bytes": end, "sha256": sha256}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if first:
            fsync_directory(self._file.parent)
        self._noted = end

    def verified(self, header: bytes, on_bytes: Callable[[int], None]) -> tuple[int, hashlib._Hash]:
        """The longest noted length whose bytes begin with `header` and hash as noted, and the digest up to there.

        (0, empty) where there is none; then nothing of the earlier run is left. `on_bytes` gets what was read.
        """
        lines = self._lines()
        good, digest = self._longest(lines, header, on_bytes) if lines else (0, hashlib.sha256())
        if good == 0:
            self.discard()
        elif good != lines[-1][0]:
            kept = [line for line in lines if line[0] <= good]
            self._file.unlink()
            for end, sha256 in kept:
                self.note(end, sha256)
        self._noted = good
        return good, digest

    def discard(self) -> None:
        """Delete the growing file and what is noted of it."""
        self._file.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the record alone: the file is whole."""
        self._file.unlink(missing_ok=True)

    def _lines(self) -> list[tuple[int, str]]:
        """The lines up to the first that is damaged, or does not continue the one before."""
        found: list[tuple[int, str]] = []
        try:
            for line in self._file.read_text(encoding="ascii").splitlines():
                entry = json.loads(line)
                if entry["bytes"] <= (found[-1][0] if found else 0) or entry["bytes"] % appending.BLOCK_BYTES:
                    break
                found.append((int(entry["bytes"]), str(entry["sha256"])))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return found

    def _longest(
        self, lines: list[tuple[int, str]], header: bytes, on_bytes: Callable[[int], None]
    ) -> tuple[int, hashlib._Hash]:
        digest, good = hashlib.sha256(), (0, hashlib.sha256())
        block = memoryview(bytearray(appending.BLOCK_BYTES))
        try:
            with open(self.part, "rb", buffering=0) as stream:
                if stream.read(len(header)) != header:
                    return good
                stream.seek(0)
                for end, sha256 in lines:
                    while stream.tell() < end and stream.readinto(block) == appending.BLOCK_BYTES:
                        digest.update(block)
                    if stream.tell() != end or digest.hexdigest() != sha256:
                        break
                    on_bytes(end - good[0])
                    good = end, digest.copy()
        except OSError:
            pass
        return good
