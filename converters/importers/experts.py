"""Mixtures of experts on disk: the keys that describe them, and experts whose weights are stored fused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorInfo
from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.spec import ExpertsSpec, RoutingSpec

from .base import SourceTensor
from .config_reader import ConfigReader, Key
from .matching import NameMap

EXPERTS_IGNORED = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "ep_size"})
"""Keys that steer the training of a router and change no output."""
_FUSED = re.compile(r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(gate_up_proj|down_proj)")


def read_experts(
    reader: ConfigReader, keys: Mapping[str, Key], blocks: tuple[int, ...], **more: Any
) -> ExpertsSpec | None:
    """The experts of `blocks`, None where no block has any; `keys` map source keys to fields of either description."""
    fields = reader.fields(keys) | more
    names = {field.name for field in dataclasses.fields(RoutingSpec)}
    routing = RoutingSpec(**{name: value for name, value in fields.items() if name in names})
    own = {name: value for name, value in fields.items() if name not in names}
    return ExpertsSpec(layers=blocks, routing=routing, **own) if blocks else None


def sparse_blocks(reader: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """Blocks with experts where `mlp_only_layers` and `decoder_sparse_step` say it (Qwen)."""
    step = reader.number("decoder_sparse_step", Key((), default=1))
    dense = reader.raw("mlp_only_layers") or []
    if not isinstance(dense, list) or any(not isinstance(i, int) or isinstance(i, bool) for i in dense):
        reader.problem(f"mlp_only_layers: expected a list of block numbers, found {shown(dense)}")
        dense = []
    return tuple(i for i in range(num_layers) if i not in dense and (i + 1) % step == 0)


def split_experts(checkpoint: Checkpoint, names: NameMap) -> dict[str, SourceTensor]:
    """The tensors of a checkpoint; experts that it stores together appear one by one, under the names of `names`.

    Fused gate_up_proj [E, 2I, d] holds a gate and then its up rows, fused down_proj [E, d, I].
    """
    held: dict[str, SourceTensor] = {}
    for name, info in checkpoint.tensors.items():
        found = _FUSED.fullmatch(name)
        if found is None or len(info.shape) != 3:
            held[name] = SourceTensor.of(checkpoint, name)
            continue
        parts = ("gate_proj", "up_proj") if found[2] == "gate_up_proj" else ("down_proj",)
        for expert in range(info.shape[0]):
            for number, part in enumerate(parts):
                own = names.source(f"{found[1]}.mlp.experts.{expert}.{part}.weight")
                held[own] = _slice(checkpoint, info, own, expert, number, len(parts))
    return held


def _slice(checkpoint: Checkpoint, info: TensorInfo, name: str, expert: int, part: int, parts: int) -> SourceTensor:
    rows = info.shape[1] // parts

    def read(start: int, stop: int) -> np.ndarray[Any, Any]:
        whole = checkpoint.read_rows(info.name, expert, expert + 1)[0]
        return np.ascontiguousarray(whole[part * rows + start : part * rows + stop])

    return SourceTensor(name, (rows, info.shape[2]), info.dtype, read)
