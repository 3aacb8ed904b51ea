"""Learning rates over the steps: warm-up, linear decay to zero, and what the papers give the value tables."""

from __future__ import annotations

from dataclasses import replace

import torch

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.spec import ModelSpec

from .options import FITTED_LR, NEW_LR, NEW_RATIO, HealOptions

V1_RATIO = 10.0
"""P1: values learn 10 times as fast as the rest at first, as fast as the rest at the end."""


def with_rates(options: HealOptions, spec: ModelSpec, source: Checkpoint) -> HealOptions:
    """The options with their learning rates chosen where they are 0."""
    new = are_new(spec, source)
    lr = options.lr or (NEW_LR if new else FITTED_LR)
    return replace(options, lr=lr, value_lr=options.value_lr or lr * (NEW_RATIO if new else 1))


def are_new(spec: ModelSpec, source: Checkpoint) -> bool:
    """Whether the memory layers are untrained: behind output projections that are all zero."""
    projections = [f"memory.{index}.output.weight" for index in range(len(spec.memory))]
    return all(name in source.tensors and not source.array(name).any() for name in projections)


def set_rates(optimizer: torch.optim.Optimizer, options: HealOptions, step: int) -> None:
    """Give the groups named "tables" and "rest" their learning rates of `step`, counted from 0."""
    rates = {"rest": options.lr, "tables": value_rate(options, step)}
    factor = min(1.0, (step + 1) / max(1, options.warmup)) * (1 - step / options.steps)
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]] * factor


def value_rate(options: HealOptions, step: int) -> float:
    """The tables' learning rate before warm-up and decay."""
    if options.value_schedule == "fixed":
        return options.value_lr
    if options.value_schedule == "v2":
        return options.lr
    return options.lr * (V1_RATIO + (1 - V1_RATIO) * step / max(1, options.steps - 1))
