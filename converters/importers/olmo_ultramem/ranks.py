"""Vertical parallel: one group of ranks holds the tables by columns, and everything else once each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError
from ultramem_deploy.official.layout import PRE_TABLE, TABLE
from ultramem_deploy.official.model import Official

from ..base import SourceTensor
from ..training_weights import Weights
from ..views import beside, whole

_COMPARED = 1 << 16
"""Replicated tensors of up to so many numbers are compared; the larger ones by shape and dtype."""


def group_tensors(path: Path, weights: Weights, model: Official, warnings: list[str]) -> Mapping[str, SourceTensor]:
    """The tensors of the whole model from rank 0's group. InputError for a missing rank, or one of another save."""
    if not weights.ranks:
        return weights.tensors
    if not model.vertical:
        raise InputError(
            f"{path}: holds rank_{{r}}/model.pt of vertical parallel, but config.yaml has vertical_parallel false;"
            " config and weights are of different runs"
        )
    missing = [rank for rank in range(model.group) if rank not in weights.ranks]
    if missing:
        raise InputError(
            f"{path}: rank_{missing[0]}/model.pt is missing: mem_parallel_size {model.group} needs ranks 0 to"
            f" {model.group - 1}, found {', '.join(map(str, weights.ranks))}"
        )
    others = [rank for rank in weights.ranks if rank >= model.group]
    if others:
        warnings.append(
            f"ranks 0 to {model.group - 1} are read; the {len(others)} others are replicas of them, left unread"
        )
    group = [weights.ranks[rank] for rank in range(model.group)]
    for rank, other in enumerate(group[1:], 1):
        _check_replica(path, rank, group[0], other)
    return {
        name: beside([one[name] for one in group]) if name in (TABLE, PRE_TABLE) and len(tensor.shape) == 2 else tensor
        for name, tensor in group[0].items()
    }


def _check_replica(path: Path, rank: int, first: Mapping[str, SourceTensor], other: Mapping[str, SourceTensor]) -> None:
    where = f"{path}: rank_{rank}/model.pt"
    apart = sorted(set(first) ^ set(other))
    if apart:
        raise InputError(f"{where}: {shown(apart[0])} is not in both it and rank_0/model.pt; ranks of different runs")
    for name, tensor in first.items():
        same = (tensor.shape, tensor.dtype) == (other[name].shape, other[name].dtype)
        if not same or (name not in (TABLE, PRE_TABLE) and not _equal(tensor, other[name])):
            raise InputError(
                f"{where}: tensor {shown(name)} differs from that of rank_0/model.pt, of which it should be a copy;"
                " ranks of different steps or runs, get them again"
            )


def _equal(one: SourceTensor, two: SourceTensor) -> bool:
    if int(np.prod(one.shape)) > _COMPARED:
        return True
    return whole(one).tobytes() == whole(two).tobytes()
