"""What `heal` refuses: options that cannot work, training that moves nothing, weights that have diverged."""

from __future__ import annotations

import math

import torch

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.spec import ModelSpec

from .options import TRAINABLE, HealOptions

_LARGEST = 1e30  # AdamW fails beyond float32; nothing sensible is near


def check_options(spec: ModelSpec, options: HealOptions) -> None:
    """InputError for a model without memory layers, or for an option outside its range."""
    if not spec.memory:
        raise InputError("heal: the model has no memory layers to train; run upcycle first")
    folded = [index for index, layer in enumerate(spec.memory) if layer.rank_one_keys]
    if folded:
        raise InputError(
            f"heal: memory layer {folded[0]} has rank-1 keys, which are folded from its keys and would not follow them;"
            " heal the checkpoint from before `fold`"
        )
    codes = [f"table {name!r} ({table.storage})" for name, table in spec.tables.items() if table.storage != "float"]
    codes += [f"dense weights ({spec.decoder.dense})"] if spec.decoder.dense != "float" else []
    if codes:
        raise InputError(f"heal: {', '.join(codes)}: a quantised model cannot be trained; heal first, then quantize")
    if options.train not in TRAINABLE:
        raise InputError(f"--train: expected one of {', '.join(TRAINABLE)}, found {options.train!r}")
    for name in ("steps", "batch", "lr", "value_lr"):
        if not 0 < getattr(options, name) < _LARGEST:
            raise InputError(
                f"--{name.replace('_', '-')}: must be positive, below {_LARGEST:g}, found {getattr(options, name)}"
            )
    for name in ("warmup", "seed"):
        if not 0 <= getattr(options, name) < 1 << 63:
            raise InputError(f"--{name}: must not be negative, found {getattr(options, name)}")
    if not 1 < options.length <= spec.decoder.max_positions:
        raise InputError(f"--length: expected 2..{spec.decoder.max_positions}, found {options.length}")


def check_gradients(spec: ModelSpec, source: Checkpoint, train: str) -> None:
    """InputError where `train` "keys" would move nothing: behind a projection that is zero every gradient is zero."""
    projections = [f"memory.{index}.output.weight" for index in range(len(spec.memory))]
    if train != "keys" or any(n not in source.tensors or source.array(n).any() for n in projections):
        return
    raise InputError(
        f"--train keys: {', '.join(projections)}: all zero, so the keys get no gradient: the memory layers are "
        "untrained; heal with --train memory first"
    )


def diverged(what: str) -> CheckFailed:
    """The error of a run that has left the finite numbers."""
    return CheckFailed(f"heal: {what}: lower --lr and --value-lr")


@torch.no_grad()
def check_trained(model: UltraMemModel, source: Checkpoint, window: torch.Tensor, perplexity: float) -> None:
    """CheckFailed where what would be written has diverged: `window` holds held-out tokens, int64 [S]."""
    for name, parameter in model.named_parameters():
        stored = source.info(name).dtype
        if parameter.requires_grad and not parameter.to(getattr(torch, stored)).isfinite().all():
            raise diverged(f"{name} is not finite as {stored} after the last step")
    if not math.isfinite(perplexity):
        raise diverged("the held-out perplexity is not finite after the last step")
    if not model(window[None]).any():
        raise diverged("every logit is zero after the last step")
