"""The model that learns, and the one that it learns from."""

from __future__ import annotations

from pathlib import Path

import torch

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import UltraMemModel, load
from ultramem_deploy.spec import ModelSpec

from .options import TRAINABLE, HealOptions


def training_model(spec: ModelSpec, source: Checkpoint, options: HealOptions) -> UltraMemModel:
    """Copies of the mapped source: float32 what is trained and all memory layers; the rest as `autocast` computes."""
    with torch.device("meta"):
        model = UltraMemModel(spec)
    trained = {name for name, _ in model.named_parameters() if is_trained(name, options.train)}
    state = {}
    for name, tensor in tensor_layout(spec).items():
        stored = source.torch(name)
        frozen = tensor.role == "dense" and name not in trained
        dtype = frozen_dtype(options) if frozen else torch.float32
        state[name] = stored.to(dtype, copy=True) if stored.is_floating_point() else stored.clone()
    model.load_state_dict(state, strict=True, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def source_model(path: Path, options: HealOptions) -> UltraMemModel:
    """The frozen model of the canonical checkpoint `path`, to distil from."""
    return load(path, dtype=str(frozen_dtype(options)).removeprefix("torch."))


def frozen_dtype(options: HealOptions) -> torch.dtype:
    """What dense weights that do not learn are held in."""
    return torch.bfloat16 if options.autocast == "bf16" else torch.float32


def is_trained(name: str, train: str) -> bool:
    """Whether `train` covers the parameter `name`."""
    if train in ("all", "memory"):
        return name.startswith(TRAINABLE[train])
    if name.startswith("tables."):
        return train == "values"
    return name.startswith("memory.") and any(part in name for part in TRAINABLE[train])


def make_optimizer(model: UltraMemModel, options: HealOptions) -> torch.optim.AdamW:
    """AdamW without weight decay: decay would pull rarely read table rows to zero between their reads."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = {
        "tables": [p for n, p in named if n.startswith("tables.")],
        "rest": [p for n, p in named if not n.startswith("tables.")],
    }
    return torch.optim.AdamW(
        [{"params": params, "name": name} for name, params in groups.items() if params],
        lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0,
    )  # fmt: skip


@torch.no_grad()
def changed_tensors(model: UltraMemModel) -> dict[str, torch.Tensor]:
    """What training changes, by name: the parameters that learn, and the u and v that follow a core."""
    changed = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for index, layer in enumerate(model.memory_layers):
        if layer.spec.scoring == "tucker" and layer.core.requires_grad:
            changed |= {f"memory.{index}.u": layer.u, f"memory.{index}.v": layer.v}
    return changed
