"""OUT.partial, where a stage works: its lock, the state that lets it resume, and the renames that publish it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint.files import files_below, fsync_directory, remove_children, write_atomic
from ultramem_deploy.checkpoint.journal import JOURNAL_SUFFIX, PART_SUFFIX
from ultramem_deploy.checkpoint.provenance import PROVENANCE_NAME, fingerprint, pretty_json
from ultramem_deploy.errors import InputError

LOCK_NAME = ".lock"
STATE_NAME = "fingerprint.json"
RECORDS_NAME = "shards.json"
STATE_NAMES = (LOCK_NAME, STATE_NAME, RECORDS_NAME)
# A file of a stage's own resume state (say, a training step's): kept for the next run, deleted once the stage is whole.
RESUME_PREFIX = "resume-"


class Partial:
    """The working directory of one output.

    `records` maps each finished file to {"sha256", "size", ...}. A file that has no record is not finished, whatever
    it is called. Once provenance.json is there and fingerprint.json is gone, only the renames are left to do.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        self.records: dict[str, dict[str, Any]] = {}
        self._lock: int | None = None

    def acquire(self) -> None:
        """Make the directory and lock it; InputError when another run holds it, or when it is not a stage's."""
        if self.path.is_dir() and os.listdir(self.path) and not (self.path / LOCK_NAME).exists():
            raise InputError(f"{self.path}: exists and is no unfinished work of this tool; move it away")
        while self._lock is None:
            self._lock = self._try_lock()

    def release(self) -> None:
        """Give up the lock; what is in the directory stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Delete the directory and give up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def is_whole(self, identity: Callable[[], str]) -> bool:
        """Whether only the renames are missing of an output whose fingerprint is `identity`."""
        if (self.path / STATE_NAME).exists():
            return False
        made = _lenient(self.path / PROVENANCE_NAME).get("fingerprint")
        return made is not None and made == identity()

    def adopt(self, parts: dict[str, Any]) -> str | None:
        """Take over what an earlier run left that had the same `parts`; why work was thrown away, if any was."""
        identity, state = fingerprint(parts), _lenient(self.path / STATE_NAME)
        reason, same = None, state.get("fingerprint") == identity
        if same:
            self._load_records()
        elif not self.is_bare():
            reason = difference(state.get("parts", {}), parts)
        remove_children(
            self.path,
            lambda name: name == LOCK_NAME or name in self.records or (same and _is_resume_state(name)),
        )
        write_atomic(self.path / STATE_NAME, pretty_json({"fingerprint": identity, "parts": parts}))
        self._save()
        return reason

    def is_bare(self) -> bool:
        """Whether the directory holds no work at all."""
        return not set(files_below(self.path)) - set(STATE_NAMES)

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Note durably that file `name` is finished."""
        self.records[name] = entry
        self._save()

    def forget(self, name: str) -> None:
        """Take the note back, before the file changes."""
        if self.records.pop(name, None) is not None:
            self._save()

    def drop_resume_files(self) -> None:
        """Delete what only a next run would need: the stage's own resume state, files that were not finished."""
        for name in files_below(self.path):
            if _is_resume_state(name):
                (self.path / name).unlink()

    def publish(self) -> None:
        """Rename the directory to the output's name, in place of what is there, and give up the lock."""
        for name in (RECORDS_NAME, STATE_NAME):
            (self.path / name).unlink(missing_ok=True)
        fsync_directory(self.path)
        old = self.out.with_name(f".{self.out.name}.replaced")
        if self.out.exists() and os.listdir(self.out):
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.out, old)
        try:
            os.rename(self.path, self.out)
        except OSError:
            if old.exists() and not self.out.exists():
                os.rename(old, self.out)
            raise
        fsync_directory(self.out.parent)
        # The lock goes last: whoever waits for it under the old name finds another file there, or none.
        (self.out / LOCK_NAME).unlink(missing_ok=True)
        self.release()
        shutil.rmtree(old, ignore_errors=True)

    def _try_lock(self) -> int | None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / LOCK_NAME
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise InputError(f"{self.out}: another run (pid {owner}) is writing it; wait for it, or end it") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        os.close(handle)  # the run that held it renamed the directory meanwhile
        return None

    def _load_records(self) -> None:
        for name, entry in _lenient(self.path / RECORDS_NAME).items():
            file = self.path / name
            if file.is_file() and file.stat().st_size == entry["size"]:
                self.records[name] = entry

    def _save(self) -> None:
        write_atomic(self.path / RECORDS_NAME, pretty_json(self.records))


def _is_resume_state(name: str) -> bool:
    return name.startswith(RESUME_PREFIX) or name.endswith((PART_SUFFIX, JOURNAL_SUFFIX))


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Which parts of two fingerprints differ, in words: "the options changed (bits)"."""
    if not before:
        return "its record is missing or damaged"
    changed = [_named(key, before.get(key), after[key]) for key in after if before.get(key) != after[key]]
    return f"the {' and the '.join(changed)} changed" if changed else "its record is missing or damaged"


def _named(key: str, before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        return f"{key} ({', '.join(keys)})"
    return f"{key} ({before} before, {after} now)" if key in ("stage", "tool version", "shard size") else key


def _lenient(file: Path) -> dict[str, Any]:
    """State that cannot be read counts as absent: the work is then done again."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
