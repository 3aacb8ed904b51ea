"""What an interrupted training needs to go on: one file, under its final name only when it is whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ultramem_deploy.errors import InputError
from ultramem_deploy.model import UltraMemModel

from .models import changed_tensors


@dataclass
class History:
    """The losses of the steps done, in nats a token, and the measurements between them.

    A point of the curve is {"step", "tokens", "perplexity"} and, where a text is to be retained, "retained".
    """

    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Which point of the curve has the lowest perplexity, the first of equals."""
        return min(range(len(self.curve)), key=lambda index: self.curve[index]["perplexity"])


def disk_needed(model: UltraMemModel, saved: bool, best: bool) -> int:
    """Bytes that the state (where it is `saved`) and the `best` weights take, the old ones beside the new."""
    numbers = sum(tensor.numel() for tensor in changed_tensors(model).values())
    # float32: the weights and, in the state, AdamW's two moments of each.
    return 2 * 4 * numbers * (3 * saved + best)


def save_weights(path: Path, model: UltraMemModel) -> None:
    """Write what training changes."""
    _save(path, {f"model.{name}": tensor for name, tensor in changed_tensors(model).items()}, {})


def save_state(path: Path, model: UltraMemModel, optimizer: torch.optim.Optimizer, history: History) -> None:
    """Write weights, optimizer and history."""
    tensors = {f"model.{name}": tensor for name, tensor in changed_tensors(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    _save(path, tensors, {"losses": json.dumps(history.losses), "curve": json.dumps(history.curve)})


@torch.no_grad()
def load_state(path: Path, model: UltraMemModel, optimizer: torch.optim.Optimizer) -> History:
    """Restore what `save_state` wrote, if anything."""
    if not path.is_file():
        return History()
    tensors, metadata = _load(path)
    _restore(model, tensors)
    state = optimizer.state_dict()
    for name, value in tensors.items():
        kind, index, *key = name.split(".")
        if kind == "optimizer":
            state["state"].setdefault(int(index), {})[key[0]] = value
    optimizer.load_state_dict(state)
    return History(json.loads(metadata["losses"]), json.loads(metadata["curve"]))


@torch.no_grad()
def load_weights(path: Path, model: UltraMemModel) -> None:
    """Restore what `save_weights` wrote."""
    _restore(model, _load(path)[0])


def _restore(model: UltraMemModel, tensors: dict[str, torch.Tensor]) -> None:
    for name, target in changed_tensors(model).items():
        target.copy_(tensors[f"model.{name}"])


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_suffix(".tmp")
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, str(partial), metadata)
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error}): free some space, then run the command again") from None


def _load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
