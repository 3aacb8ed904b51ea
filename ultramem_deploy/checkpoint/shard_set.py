"""The shards that a stage writes: what an interrupted run left of them is taken over, the rest computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.chunks import Crew
from ultramem_deploy.checkpoint.contents import Contents
from ultramem_deploy.checkpoint.executors import open_crew
from ultramem_deploy.checkpoint.files import require_space
from ultramem_deploy.checkpoint.journal import Journal
from ultramem_deploy.checkpoint.partial import Partial
from ultramem_deploy.checkpoint.shard_file import write_shard
from ultramem_deploy.checkpoint.writer import Shard, TensorTask, plan_shards

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Computing:
    """Who computes chunks, and how many at a time: see `Stage`. Nothing of it changes a byte."""

    executor: str
    jobs: int
    memory_budget: int | None
    held_bytes: int


class ShardSet:
    """Shards of at most `max_shard_bytes` (a larger tensor has one of its own) in the working directory of `partial`.

    `resumed`: names of the shards that an interrupted run had finished. `continued`: of those that it had begun, the
    bytes that were reused. `progress(done, total, what)` counts bytes.
    """

    def __init__(
        self, partial: Partial, contents: Contents, how: Computing, max_shard_bytes: int, progress: Progress | None
    ) -> None:
        self.resumed: list[str] = []
        self.continued: dict[str, int] = {}
        self._partial, self._contents, self._how = partial, contents, how
        self._max_shard_bytes, self._progress = max_shard_bytes, progress
        self._done = self._total = 0

    def write(self, group: str, tasks: Sequence[TensorTask]) -> None:
        """Write tensors to shards called after `group`. InputError when the disk is too small, or a name is taken."""
        shards, how = self._planned(group, tasks), self._how
        needed = sum(self._missing(shard) for shard in shards)
        require_space(self._partial.path, needed, f"the shards of {group!r}")
        self._total += sum(shard.nbytes for shard in shards)
        wanted = [task for shard in shards if not self._is_finished(shard) for task in shard.tasks]
        with open_crew(how.executor, wanted, how.jobs, how.memory_budget, how.held_bytes) as crew:
            for shard in shards:
                self._make(shard, crew)

    def missing_bytes(self, group: str, tasks: Sequence[TensorTask]) -> int:
        """Bytes that `write` would add to the disk; InputError where a chunk does not fit the memory budget."""
        chunks_in_flight(tasks, self._how.jobs, self._how.memory_budget, self._how.held_bytes)
        return sum(self._missing(shard) for shard in self._planned(group, tasks))

    def _planned(self, group: str, tasks: Sequence[TensorTask]) -> list[Shard]:
        for task in tasks:
            self._contents.require_new(task.name)
        shards, attempt = plan_shards(tasks, group, self._max_shard_bytes), 1
        while any(shard.file in self._contents.files for shard in shards):
            attempt += 1
            shards = plan_shards(tasks, f"{group}-{attempt}", self._max_shard_bytes)
        return shards

    def _make(self, shard: Shard, crew: Crew) -> None:
        if self._is_finished(shard):
            self.resumed.append(shard.file)
            self._advance(shard.file, shard.nbytes)
        else:
            digest, continued = write_shard(
                self._partial.path / shard.file, shard.tasks, crew, lambda count: self._advance(shard.file, count)
            )
            if continued:
                self.continued[shard.file] = continued
            record = {"sha256": digest, "size": shard.nbytes, "tensors": _layout(shard)}
            self._partial.record(shard.file, record)
        self._contents.add(shard.file, self._partial.records[shard.file])
        self._contents.place({task.name: task.nbytes for task in shard.tasks}, shard.file)

    def _is_finished(self, shard: Shard) -> bool:
        record = self._partial.records.get(shard.file, {})
        return record.get("tensors") == _layout(shard) and record.get("size") == shard.nbytes

    def _missing(self, shard: Shard) -> int:
        if self._is_finished(shard):
            return 0
        return max(0, shard.nbytes - Journal(self._partial.path / shard.file).held_bytes)

    def _advance(self, what: str, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total, what)


def _layout(shard: Shard) -> list[list[Any]]:
    return [[task.name, task.dtype, list(task.shape)] for task in shard.tasks]
