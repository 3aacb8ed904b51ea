"""One training run from its first step, or from where it was interrupted, to the weights that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ultramem_deploy.checkpoint import Checkpoint

from .checks import check_trained
from .models import make_optimizer
from .state import History, load_state, load_weights, save_state, save_weights
from .train import Trainer

Progress = Callable[[int, int, str], None]


@dataclass
class Run:
    """`state` is the file that lets the run go on after an interruption, `best` holds the best weights so far.

    `resumed_at` is the first step run where an interrupted run went on.
    """

    trainer: Trainer
    state: Path
    best: Path
    save_every: int
    progress: Progress | None
    resumed_at: int | None = None

    def train(self, source: Checkpoint) -> dict[str, Any]:
        """Train and measure; returns the numbers of the receipt. `source` says what each tensor is stored as.

        Raises CheckFailed where training diverges.
        """
        trainer = self.trainer
        regressed = trainer.regression_steps()
        optimizer = make_optimizer(trainer.model, trainer.options)
        history = load_state(self.state, trainer.model, optimizer)
        self.resumed_at = len(history.losses) + 1 if history.losses else None
        if not history.curve:
            self._measure(history, 0)
        self._steps(optimizer, history, regressed)
        point = history.curve[-1]
        if trainer.options.patience:
            point = history.curve[history.best]
            load_weights(self.best, trainer.model)
        window = trainer.text.held_out[0].to(trainer.device.device)
        with trainer.device.autocast():
            check_trained(trainer.model, source, window, point["perplexity"])
        return _receipt(history, point, trainer.options.steps, regressed)

    def _steps(self, optimizer: torch.optim.Optimizer, history: History, regressed: int) -> None:
        options, total = self.trainer.options, self.trainer.options.steps
        if self._gains_no_more(history):  # stopped early, and interrupted while its weights were written
            return
        for step, loss in self.trainer.steps(optimizer, len(history.losses), regressed):
            done = step + 1
            history.losses.append(round(loss, 4))
            if done % options.eval_every == 0 or done == total:
                self._measure(history, done)
            if done % self.save_every == 0 and done < total:
                save_state(self.state, self.trainer.model, optimizer, history)
            if self.progress:
                self.progress(done, total, f"loss {loss:.3f}, held-out {history.curve[-1]['perplexity']:.4g}")
            if self._gains_no_more(history):
                return

    def _gains_no_more(self, history: History) -> bool:
        patience = self.trainer.options.patience
        return bool(patience) and len(history.curve) - 1 - history.best >= patience

    def _measure(self, history: History, step: int) -> None:
        history.curve.append(self.trainer.measured(step))
        if self.trainer.options.patience and history.best == len(history.curve) - 1:
            save_weights(self.best, self.trainer.model)


def _receipt(history: History, kept: dict[str, Any], steps: int, regressed: int) -> dict[str, Any]:
    first, last = history.curve[0], history.curve[-1]
    receipt = {
        "tokens": last["tokens"],
        "perplexity_before": first["perplexity"],
        "perplexity_after": kept["perplexity"],
        "regression_steps": regressed,
        "kept_step": kept["step"],
        "stopped_early": len(history.losses) < steps,
        "losses": history.losses,
        "curve": history.curve,
    }
    if "retained" in first:
        receipt |= {"retained_before": first["retained"], "retained_after": kept["retained"]}
    return receipt
