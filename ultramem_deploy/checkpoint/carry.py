"""Pass tensors on to the next stage unchanged, without copying what need not be copied."""

from __future__ import annotations

from collections.abc import Collection

from ultramem_deploy.checkpoint.header import read_header
from ultramem_deploy.checkpoint.reader import Checkpoint
from ultramem_deploy.checkpoint.stage import Stage
from ultramem_deploy.checkpoint.writer import TensorTask


def carry(stage: Stage, source: Checkpoint, names: Collection[str], group: str = "carried") -> None:
    """Take over the tensors `names` of `source`: whole shards are linked, shards kept in part are rewritten.

    The rewritten tensors go to shards called after `group`. Raises InputError as `Stage` does.
    """
    kept = set(names)
    loose: list[TensorTask] = []
    for file in source.files:
        infos = [info for info in source.tensors.values() if info.file == file]
        wanted = [info for info in infos if info.name in kept]
        if wanted and len(wanted) == len(infos):
            stage.link_shard(file, wanted)
        else:
            loose += [TensorTask.copy(source, info.name) for info in wanted]
    if loose:
        stage.write_tensors(group, loose)


def staged(stage: Stage) -> Checkpoint:
    """The tensors that a stage has written or linked so far, before it is published."""
    headers = {file: read_header(stage.workdir / file)[0] for file in set(stage.weight_map.values())}
    tensors = {name: headers[file][name] for name, file in stage.weight_map.items()}
    return Checkpoint(stage.workdir, tensors, {})
