"""The training loop of `heal`: the dense model stays as it is, the memory layers learn the text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.spec import ModelSpec

from .checks import diverged
from .options import TRAINABLE, HealOptions


def training_model(spec: ModelSpec, source: Checkpoint, options: HealOptions) -> UltraMemModel:
    """The model with frozen bfloat16 dense weights and trainable float32 memory layers, copies of the mapped source."""
    with torch.device("meta"):
        model = UltraMemModel(spec)
    state = {}
    for name, tensor in tensor_layout(spec).items():
        stored = source.torch(name)
        dense = tensor.role == "dense"
        state[name] = stored.to(torch.bfloat16) if dense else stored.clone()
        if not dense and stored.is_floating_point():
            state[name] = state[name].float()
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_trained(name, options.train))
    return model


def _is_trained(name: str, train: str) -> bool:
    if train == "memory":
        return name.startswith(TRAINABLE["memory"])
    return name.startswith("memory.") and any(part in name for part in TRAINABLE["keys"])


def make_optimizer(model: UltraMemModel, options: HealOptions) -> torch.optim.AdamW:
    """AdamW without weight decay: decay would pull rarely read table rows to zero between their reads."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    tables = [p for n, p in named if n.startswith("tables.")]
    rest = [p for n, p in named if not n.startswith("tables.")]
    groups = [{"params": tables, "base": options.value_lr}, {"params": rest, "base": options.lr}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0)


def train_steps(
    model: UltraMemModel, optimizer: torch.optim.AdamW, windows: torch.Tensor, options: HealOptions, first: int = 0
) -> Iterator[tuple[int, float]]:
    """Run steps [first, options.steps), yielding (step, loss in nats a token); windows are int64 [N, length].

    Raises CheckFailed where the loss or a core is no longer finite.
    """
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(options.seed))
    for step in range(first, options.steps):
        factor = min(1.0, (step + 1) / max(1, options.warmup)) * (1 - step / options.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * factor
        picked = order[torch.arange(step * options.batch, (step + 1) * options.batch) % len(order)]
        loss = next_token_loss(model, windows[picked])
        if not torch.isfinite(loss):
            raise diverged(f"the loss of step {step + 1} is {loss.item()}")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_rank_one(model)
        yield step, float(loss.detach())


def next_token_loss(model: UltraMemModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats; blocks below the first memory layer run without a graph."""
    first = min(layer.read_block for layer in model.spec.memory)
    context = model.context(ids)
    with torch.no_grad():
        x = model.blocks(model.embed(ids), context, 0, first)
    x = model.blocks(x, context, first, len(model.model.layers))
    logits = model.head(x[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def update_rank_one(model: UltraMemModel) -> None:
    """Set u, v to the rank-1 approximation of the summed core, each signed like the last one (spec §2)."""
    for layer in model.memory_layers:
        if layer.spec.scoring != "tucker":
            continue
        core = layer.core.sum(0)
        if not core.isfinite().all():  # the decomposition would fail
            raise diverged("a core is not finite")
        left, _, right = torch.linalg.svd(core)
        u, v = left[..., 0], right[..., 0, :]
        kept = (u * layer.u).sum(-1, keepdim=True) + (v * layer.v).sum(-1, keepdim=True)
        sign = torch.where(kept < 0, -1.0, 1.0)
        layer.u.copy_(u * sign)
        layer.v.copy_(v * sign)


@torch.no_grad()
def perplexity(model: UltraMemModel, windows: torch.Tensor) -> float:
    """exp of the mean next-token loss over int64 windows [N, length], one window at a time."""
    mean = sum(next_token_loss(model, window[None]).item() for window in windows) / len(windows)
    return math.exp(mean) if mean < 700 else math.inf


def save_state(path: Path, model: UltraMemModel, optimizer: torch.optim.AdamW, losses: list[float]) -> None:
    """Write what resuming after len(losses) steps needs to one file, under its final name only when it is whole."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {f"model.{n}": p for n, p in model.named_parameters() if p.requires_grad}
    tensors |= {f"buffer.{n}": b for n, b in model.named_buffers() if n.endswith((".u", ".v"))}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    metadata = {"losses": json.dumps(losses)}
    partial = path.with_suffix(".tmp")
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, str(partial), metadata)
    partial.replace(path)


@torch.no_grad()
def load_state(path: Path, model: UltraMemModel, optimizer: torch.optim.AdamW) -> list[float]:
    """Restore what `save_state` wrote, if anything; returns the losses of the steps done so far."""
    from safetensors import safe_open

    if not path.is_file():
        return []
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        losses: list[float] = json.loads(file.metadata()["losses"])
    for name, target in (*model.named_parameters(), *model.named_buffers()):
        for prefix in ("model.", "buffer."):
            if prefix + name in tensors:
                target.copy_(tensors[prefix + name])
    state = optimizer.state_dict()
    for name, value in tensors.items():
        kind, index, *key = name.split(".")
        if kind == "optimizer":
            state["state"].setdefault(int(index), {})[key[0]] = value
    optimizer.load_state_dict(state)
    return losses
