"""Files of a source that an output takes over unchanged: linked, or copied where they cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ultramem_deploy.checkpoint.contents import Contents
from ultramem_deploy.checkpoint.files import link_or_copy, sha256_file
from ultramem_deploy.checkpoint.partial import Partial
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.errors import InputError


class Linker:
    """Brings files into the working directory of `partial`; an interrupted run's links are kept.

    `how`: for each file taken over, "hardlink", "reflink" or "copy".
    """

    def __init__(self, partial: Partial, contents: Contents, sources: Callable[[], Sequence[SourceRecord]]) -> None:
        self.how: dict[str, str] = {}
        self._partial, self._contents, self._sources = partial, contents, sources

    def take(self, file: Path, name: str, copy: bool, sha256: str | None = None) -> str:
        """Take `file` over under `name`, or one like it where another file has that; returns the name it has now."""
        origin = _origin(file)
        name = self._distinct(name, origin)
        record = self._partial.records.get(name, {})
        if record.get("origin") != origin or (copy and record.get("how") != "copy"):
            digest = sha256 or self._known_hash(file, origin[0]) or sha256_file(file)
            how = link_or_copy(file, self._partial.path / name, copy)
            record = {"sha256": digest, "size": origin[0], "origin": origin, "how": how}
            self._partial.record(name, record)
        self.how[name] = record["how"]
        self._contents.add(name, record)
        return name

    def must_copy(self, file: Path) -> bool:
        """Whether a file that is not here yet lies on another filesystem."""
        return file.stat().st_dev != self._partial.path.stat().st_dev

    def _distinct(self, name: str, origin: list[int]) -> str:
        free, attempt = name, 1
        while free in self._contents.files and self._partial.records[free].get("origin") != origin:
            free = "model-source-" + ("" if attempt == 1 else f"{attempt}-") + name.removeprefix("model-")
            attempt += 1
        return free

    def _known_hash(self, file: Path, size: int) -> str | None:
        for one in self._sources():
            root = None if one.path is None else one.path if one.path.is_dir() else one.path.parent
            if root is not None and file.absolute().is_relative_to(root.absolute()):
                entry = one.files.get(file.absolute().relative_to(root.absolute()).as_posix(), {})
                if entry.get("size") == size:
                    return str(entry["sha256"])
        return None


def _origin(file: Path) -> list[int]:
    """What tells one source file from another without reading it; kept in the resume state, never in the output."""
    try:
        state = file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    return [state.st_size, state.st_mtime_ns, state.st_ino, state.st_dev]
