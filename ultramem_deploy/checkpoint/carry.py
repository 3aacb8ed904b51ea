"""Pass tensors on to the next stage unchanged, without copying what need not be copied."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ultramem_deploy.checkpoint.header import TensorInfo, read_header
from ultramem_deploy.checkpoint.reader import Checkpoint
from ultramem_deploy.checkpoint.stage import Stage
from ultramem_deploy.checkpoint.writer import TensorTask


def carry(stage: Stage, source: Checkpoint, names: Collection[str], group: str = "carried") -> None:
    """Take over the tensors `names` of `source`: whole shards are linked, shards kept in part are rewritten.

    The rewritten tensors go to shards called after `group`. Raises InputError as `Stage` does.
    """
    whole, loose = _split(source, names)
    for file, infos in whole.items():
        stage.link_shard(file, infos)
    if loose:
        stage.write_tensors(group, loose)


def missing_bytes(stage: Stage, source: Checkpoint, names: Collection[str], group: str = "carried") -> int:
    """Bytes that `carry` would add to the disk."""
    whole, loose = _split(source, names)
    return stage.missing_bytes({group: loose} if loose else {}, whole)


def _split(source: Checkpoint, names: Collection[str]) -> tuple[dict[Path, list[TensorInfo]], list[TensorTask]]:
    """Files that are kept whole, with their tensors, and the kept tensors of all others."""
    kept = set(names)
    whole: dict[Path, list[TensorInfo]] = {}
    loose: list[TensorTask] = []
    for file in source.files:
        infos = [info for info in source.tensors.values() if info.file == file]
        wanted = [info for info in infos if info.name in kept]
        if wanted and len(wanted) == len(infos):
            whole[file] = wanted
        else:
            loose += [TensorTask.copy(source, info.name) for info in wanted]
    return whole, loose


def staged(stage: Stage) -> Checkpoint:
    """The tensors that a stage has written or linked so far, before it is published."""
    headers = {file: read_header(stage.workdir / file)[0] for file in set(stage.weight_map.values())}
    tensors = {name: headers[file][name] for name, file in stage.weight_map.items()}
    return Checkpoint(stage.workdir, tensors, {})
