"""One streamed pass of real text through the dense model: what each FFN's neurons do, and a sample of their inputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.model.ffn import GatedMLP
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.text import token_windows

WINDOW = 256
PIECE = 2000  # characters
SAMPLE = 1024  # FFN inputs kept of a block


@dataclass
class BlockStatistics:
    """Sums over the calibration tokens, float64 [N] of N neurons; `inputs` [S, d] are some of what the FFN read."""

    gate: torch.Tensor
    importance: torch.Tensor
    tokens: int = 0
    inputs: list[torch.Tensor] = field(default_factory=list)

    @property
    def mean_gate(self) -> torch.Tensor:
        """E |act(<gate_n, x>)|."""
        return self.gate / self.tokens

    @property
    def mean_importance(self) -> torch.Tensor:
        """E |act(<gate_n, x>) <up_n, x>| |down_n|: what a neuron adds to the output on average."""
        return self.importance / self.tokens

    @property
    def sample(self) -> torch.Tensor:
        """FFN inputs, float32 [S, d]."""
        return torch.cat(self.inputs).float()


def shuffled_windows(tokenizer: Tokenizer, documents: tuple[str, ...], tokens: int, longest: int) -> np.ndarray:
    """int64 [count, length] of about `tokens` tokens from everywhere in the documents; fewer where the text is short.

    Raises InputError for a text of fewer than two tokens.
    """
    pieces = [d[start : start + PIECE] for d in documents for start in range(0, len(d), PIECE)]
    random.Random(0).shuffle(pieces)
    length, have, taken = min(WINDOW, longest, tokens), 0, 0
    while taken < len(pieces) and have < tokens + length:
        have += len(tokenizer.encode(pieces[taken]))
        taken += 1
    windows = token_windows(tokenizer, tuple(pieces[:taken]), max(2, min(length, have)))
    return windows[: -(-tokens // length)]


@torch.no_grad()
def calibrate(
    model: UltraMemModel, windows: np.ndarray, progress: Callable[[int, int, str], None] | None = None
) -> list[BlockStatistics]:
    """Statistics of every block's FFN over int64 windows [count, length], one window at a time."""
    width = model.spec.decoder.intermediate_size
    blocks = [
        BlockStatistics(torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
        for _ in model.model.layers
    ]
    kept = -(-SAMPLE // len(windows))
    hooks = [mlp.register_forward_hook(_collector(block, kept)) for mlp, block in zip(ffns(model), blocks, strict=True)]
    try:
        for number, window in enumerate(windows):
            model(torch.from_numpy(window)[None], logits_to_keep=1)
            if progress:
                progress(number + 1, len(windows), "calibration")
    finally:
        for hook in hooks:
            hook.remove()
    return blocks


def ffns(model: UltraMemModel) -> list[GatedMLP]:
    """The FFN of every block of a dense model."""
    return [layer.mlp for layer in model.model.layers if isinstance(layer.mlp, GatedMLP)]


def _collector(block: BlockStatistics, kept: int) -> Callable[..., None]:
    def collect(mlp: GatedMLP, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        x = arguments[0][0]
        gate, inner = neuron_values(mlp, x)
        block.gate += gate.abs().sum(0)
        block.importance += (inner.abs() * mlp.down_proj.weight.float().norm(dim=0)).sum(0)
        block.tokens += len(x)
        # The first position of a window is an attention sink, unlike all others: it tells nothing about the rest.
        step = max(1, (len(x) - 1) // kept)
        block.inputs.append(x[1::step][:kept].clone() if len(x) > 1 else x.clone())

    return collect


def neuron_values(mlp: GatedMLP, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """act(<gate_n, x>) and act(<gate_n, x>) <up_n, x>, both float32 [T, N], of x [T, d]."""
    gate = mlp.activation(mlp.gate_proj(x)).float()
    return gate, gate * mlp.up_proj(x).float()
