"""What `heal` refuses: options that cannot work, training that moves nothing, weights that have diverged."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.option_problems import refuse
from ultramem_deploy.spec import ModelSpec

from .models import changed_tensors
from .options import HealOptions, source_problems
from .schedule import are_new


def check_options(spec: ModelSpec, options: HealOptions) -> None:
    """InputError for a model without memory layers, or for an option outside its range."""
    _check_model(spec)
    refuse(options.problems())
    if options.length > spec.decoder.max_positions:
        raise InputError(f"--length: expected 2..{spec.decoder.max_positions}, found {options.length}")


def _check_model(spec: ModelSpec) -> None:
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


def check_source(spec: ModelSpec, distil: Path | None, retain: Path | None, options: HealOptions) -> None:
    """InputError where what is to be distilled from is missing, or is another kind of model."""
    refuse(source_problems(options, distil, retain))
    if distil is None:
        return
    source = ModelSpec.load(distil).decoder
    sizes = ["vocab_size"]
    if retain is None and options.regression:
        sizes += ["num_layers", "hidden_size"]
    for name in sizes:
        here, there = getattr(spec.decoder, name), getattr(source, name)
        if here != there:
            hint = "" if name == "vocab_size" else "; --regression 0 distils predictions alone"
            raise InputError(f"--distill: {distil.name}: {name}: expected {here} as the model has, found {there}{hint}")


def check_gradients(spec: ModelSpec, source: Checkpoint, train: str) -> None:
    """InputError where `train` "keys" would move nothing: behind a projection that is zero every gradient is zero."""
    if train == "keys" and are_new(spec, source):
        projections = ", ".join(f"memory.{index}.output.weight" for index in range(len(spec.memory)))
        raise InputError(
            f"--train keys: {projections}: all zero, so the keys get no gradient: the memory layers are untrained; "
            "heal with --train memory first"
        )


def diverged(what: str) -> CheckFailed:
    """The error of a run that has left the finite numbers."""
    return CheckFailed(f"heal: {what}: lower --lr and --value-lr")


@torch.no_grad()
def check_trained(model: UltraMemModel, source: Checkpoint, window: torch.Tensor, perplexity: float) -> None:
    """CheckFailed where what would be written has diverged: `window` holds held-out tokens, int64 [S]."""
    for name, tensor in changed_tensors(model).items():
        stored = source.info(name).dtype
        if not tensor.to(getattr(torch, stored)).isfinite().all():
            raise diverged(f"{name} is not finite as {stored} after the last step")
    if not math.isfinite(perplexity):
        raise diverged("the held-out perplexity is not finite after the last step")
    if not model(window[None]).any():
        raise diverged("every logit is zero after the last step")
