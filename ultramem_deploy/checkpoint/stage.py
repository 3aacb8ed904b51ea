"""A stage's output directory, made atomically and resumably: nothing half-written ever has the final name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from ultramem_deploy.checkpoint.contents import Contents
from ultramem_deploy.checkpoint.files import require_space, write_atomic
from ultramem_deploy.checkpoint.header import TensorInfo, read_header
from ultramem_deploy.checkpoint.index import INDEX_NAME
from ultramem_deploy.checkpoint.journal import JOURNAL_SUFFIX, PART_SUFFIX
from ultramem_deploy.checkpoint.linking import Linker
from ultramem_deploy.checkpoint.occupied import check_elsewhere, check_sources, is_made
from ultramem_deploy.checkpoint.partial import RESUME_PREFIX, STATE_NAMES, Partial
from ultramem_deploy.checkpoint.pending import PendingSource
from ultramem_deploy.checkpoint.provenance import (
    PROVENANCE_NAME,
    SourceRecord,
    build_provenance,
    fingerprint,
    plain,
    pretty_json,
    read_provenance,
    tool_version,
)
from ultramem_deploy.checkpoint.ray_cluster import ray_library
from ultramem_deploy.checkpoint.shard_set import Computing, Progress, ShardSet
from ultramem_deploy.checkpoint.writer import TensorTask
from ultramem_deploy.errors import InputError

_EDITED = {".json", ".txt", ".jinja", ".yaml", ".yml", ".md"}
_RESERVED = (*STATE_NAMES, INDEX_NAME, PROVENANCE_NAME)
_UNFINISHED = {".tmp", PART_SUFFIX, JOURNAL_SUFFIX}


class Stage:
    """Context manager that makes the directory `out`; see `__init__`. Inside it, write and link; the exit publishes.

    `up_to_date`: `out` was made already from the same source, options and tool version: leave the body at once.
    `restarted`: why the work of an interrupted run was thrown away, or None.
    `receipt`: what the stage proved; goes into provenance.json, and comes from it where `out` is up to date.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        name: str,
        source: SourceRecord | PendingSource | list[SourceRecord],
        options: Mapping[str, Any],
        *,
        overwrite: bool = False,
        copy: bool = False,
        jobs: int | None = None,
        memory_budget: int | None = None,
        held_bytes: int = 0,
        executor: str = "threads",
        max_shard_bytes: int = 4 << 30,
        progress: Progress | None = None,
    ) -> None:
        """Nothing is touched before the context is entered.

        `options` (JSON values) must hold all that changes the output. `copy` copies files instead of linking them;
        `jobs` threads or processes (`executor`: one of `executors.EXECUTORS`) compute chunks, as many at a time as
        `memory_budget` bytes (None: jobs + 1) hold beside `held_bytes` of the stage's own; nothing of that changes a
        byte. `progress(done, total, what)` counts bytes.
        """
        self.out = _normal(Path(out))
        self.name = name
        self._given = list(source) if isinstance(source, list) else [source]
        self.options: dict[str, Any] = plain(options)
        self.overwrite = overwrite
        self.copy = copy
        self.max_shard_bytes = max_shard_bytes
        self.progress = progress
        self.up_to_date = False
        self.restarted: str | None = None
        self.receipt: dict[str, Any] = {}
        self._partial = Partial(self.out)
        self._contents = Contents()
        self._linker = Linker(self._partial, self._contents, lambda: self.sources)
        self.jobs = jobs or min(8, len(os.sched_getaffinity(0)))
        if executor == "ray":
            ray_library()
        how = Computing(executor, self.jobs, memory_budget, held_bytes)
        self._shards = ShardSet(self._partial, self._contents, how, max_shard_bytes, progress)

    @property
    def sources(self) -> list[SourceRecord]:
        """What the stage reads; waits for the hashes of what somebody else saved."""
        return [one.record if isinstance(one, PendingSource) else one for one in self._given]

    def _parts(self, sources: list[Any]) -> dict[str, Any]:
        """All that decides the output, as what tells one such stage from another."""
        return {
            "stage": self.name,
            "source": sources,
            "options": self.options,
            "shard size": self.max_shard_bytes,
            "tool version": tool_version(),
        }

    def _made_of(self) -> dict[str, Any]:
        return self._parts([one.fingerprint for one in self.sources])

    def _resumes(self) -> dict[str, Any]:
        return self._parts([one.marks if isinstance(one, PendingSource) else one.fingerprint for one in self._given])

    @property
    def workdir(self) -> Path:
        """Where the files are until the exit renames it to `out` (`out` itself when that is up to date)."""
        return self.out if self.up_to_date else self._partial.path

    @property
    def resumed(self) -> list[str]:
        """Names of the shards that an interrupted run had finished and this one reused."""
        return self._shards.resumed

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file name."""
        return self._contents.weight_map

    @property
    def linked(self) -> dict[str, str]:
        """For each linked file, "hardlink", "reflink" or "copy"."""
        return self._linker.how

    def __enter__(self) -> Stage:
        """Lock the working directory, take over what an interrupted run left; InputError when `out` is in the way."""
        try:
            check_sources(self.out, self._given)
            if not self._is_made():
                check_elsewhere(self.out)
                self._partial.acquire()
                if self._is_made():
                    self._partial.discard()
                elif self._partial.is_whole(lambda: fingerprint(self._made_of())):
                    self._partial.publish()
                    self.up_to_date = True
                else:
                    self.restarted = self._partial.adopt(self._resumes())
                    self._start_hashing()
        except OSError as error:
            self._partial.release()
            raise InputError(
                f"{self.out}: cannot be made: {error.strerror or error}; choose another directory"
            ) from None
        except BaseException:
            self._partial.release()
            raise
        return self._recorded() if self.up_to_date else self

    def _is_made(self) -> bool:
        self.up_to_date = self.out.exists() and is_made(self.out, self._made_of(), self.overwrite)
        return self.up_to_date

    def _start_hashing(self) -> None:
        for one in self._given:
            if isinstance(one, PendingSource):
                one.start()

    def _stop_hashing(self) -> None:
        for one in self._given:
            if isinstance(one, PendingSource):
                one.stop()

    def _recorded(self) -> Stage:
        self.receipt = dict((read_provenance(self.out) or {}).get("receipt") or {})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish after a clean body; otherwise leave what there is of work for the next run to resume."""
        if self.up_to_date:
            return
        try:
            if kind is None:
                self._finish()
            elif self._partial.is_bare():
                self._partial.discard()
        except OSError as failure:
            raise InputError(f"{self.out}: cannot be finished: {failure.strerror or failure}; then run again") from None
        finally:
            self._stop_hashing()
            self._partial.release()

    @property
    def notes(self) -> dict[str, Any]:
        """What became of an interrupted run's work: `resumed`, `continued`, `restarted`; only what is set."""
        found = {"resumed": self.resumed, "continued": self._shards.continued, "restarted": self.restarted}
        return {key: value for key, value in found.items() if value}

    def resume_file(self, name: str) -> Path:
        """Where a stage may keep state of its own: the next run finds it, the finished output does not hold it."""
        return self.workdir / f"{RESUME_PREFIX}{name}"

    def write_tensors(self, group: str, tasks: Sequence[TensorTask]) -> None:
        """Write tensors to shards called after `group`, but for those that an interrupted run finished.

        InputError when the disk cannot hold them, or when a name is taken.
        """
        self._must_be_open()
        self._shards.write(group, tasks)

    def require_room(
        self, groups: Mapping[str, Sequence[TensorTask]], advice: str = "", carried: Iterable[Path] = ()
    ) -> None:
        """InputError before any work where the disk cannot hold all that `write_tensors` will be given, or a chunk
        does not fit the memory budget. `advice` names the option that would need less; `carried` as for
        `missing_bytes`.
        """
        require_space(self.workdir, self.missing_bytes(groups, carried), f"the tensors of {self.name!r}", advice)

    def missing_bytes(self, groups: Mapping[str, Sequence[TensorTask]], carried: Iterable[Path] = ()) -> int:
        """Bytes that `write_tensors` of these groups and linking the files `carried` would add to the disk.

        Files take room where they must be copied. What an interrupted run wrote counts as held.
        """
        new = (file for file in carried if file.name not in self._partial.records)
        needed = sum(file.stat().st_size for file in new if self.copy or self._linker.must_copy(file))
        return needed + sum(self._shards.missing_bytes(group, tasks) for group, tasks in groups.items())

    def link_shard(self, file: Path, infos: Iterable[TensorInfo], sha256: str | None = None) -> str:
        """Take over a whole safetensors file and list its tensors `infos` in the index; returns its name in the output.

        A hard link where the filesystem allows it, else a reflink or copy. The hash comes from `sha256`, from the
        source's record, or from reading the file.
        """
        self._must_be_open()
        names = {info.name: info.nbytes for info in infos}
        if not names.keys() <= read_header(file)[0].keys():
            raise ValueError(f"{file.name}: does not hold every tensor of infos: a linked shard cannot rename tensors")
        name = self._linker.take(file, file.name, self.copy, sha256)
        self._contents.place(names, name)
        return name

    def link_file(self, file: Path, name: str | None = None) -> str:
        """Take over any other file, under `name` if given; text that people edit is copied, so edits stay apart."""
        self._must_be_open()
        target = _checked(name or file.name)
        if target in self._contents.files:
            raise ValueError(f"{target}: written already")
        return self._linker.take(file, target, self.copy or file.suffix in _EDITED)

    def write_json(self, name: str, obj: Any) -> None:
        """Write a JSON file: sorted keys, two spaces, numpy scalars allowed."""
        self._write(name, pretty_json(obj))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8."""
        self._write(name, text.encode("utf-8"))

    def _write(self, name: str, data: bytes) -> None:
        self._must_be_open()
        target = _checked(name)
        self._partial.forget(target)
        for known in (self._contents.files, self.linked):
            known.pop(target, None)
        write_atomic(self.workdir / target, data)

    def _must_be_open(self) -> None:
        if self.up_to_date:
            raise RuntimeError("the stage is up to date: leave its body at once")

    def _finish(self) -> None:
        for name in set(self._partial.records) - self._contents.files.keys():
            self._partial.forget(name)
            (self.workdir / name).unlink(missing_ok=True)
        self._partial.drop_resume_files()
        if self.weight_map:
            write_atomic(self.workdir / INDEX_NAME, pretty_json(self._contents.index()))
        document = build_provenance(
            self.name,
            self.options,
            self.sources,
            fingerprint(self._made_of()),
            self.max_shard_bytes,
            self._contents.described(self.workdir),
            self.receipt,
        )
        write_atomic(self.workdir / PROVENANCE_NAME, pretty_json(document))
        self._partial.publish()


def _normal(path: Path) -> Path:
    if path.name in ("", "..") or path.is_symlink():
        path = path.resolve()
    if not path.name:
        raise InputError("the output must be a directory below /, not / itself")
    return path


def _checked(name: str) -> str:
    pure = PurePosixPath(name)
    if not pure.name or pure.is_absolute() or ".." in pure.parts or name in _RESERVED or pure.suffix in _UNFINISHED:
        raise ValueError(f"file name {name!r} must be relative, inside the output, and none of {', '.join(_RESERVED)}")
    return pure.as_posix()
