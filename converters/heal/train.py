"""The training loop of `heal`, and what it measures on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ultramem_deploy.model import UltraMemModel

from .checks import diverged
from .data import Windows
from .devices import Device
from .objective import divergence, next_token_loss, regression
from .options import HealOptions
from .schedule import set_rates

NEGLIGIBLE = 1e-9  # of a relative squared error: a source that is matched but for the order of some sums
Loss = Callable[[int], torch.Tensor]
"""The number of a batch -> its loss, a scalar."""


@dataclass(frozen=True)
class Trainer:
    """A model, the text that it learns, the text that it retains, and the source that both may be compared with."""

    model: UltraMemModel
    source: UltraMemModel | None
    text: Windows
    retained: Windows | None
    options: HealOptions
    device: Device

    def steps(self, optimizer: torch.optim.Optimizer, first: int, regressed: int) -> Iterator[tuple[int, float]]:
        """Run steps [first, options.steps), those below `regressed` by regression, yielding (step, loss).

        Raises CheckFailed where the loss or a core is no longer finite.
        """
        for step in range(first, self.options.steps):
            set_rates(optimizer, self.options, step)
            loss = self._accumulated(step, self._regression if step < regressed else self._loss)
            if not math.isfinite(loss):
                raise diverged(f"the loss of step {step + 1} is {loss}")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            follow_cores(self.model)
            yield step, loss

    def regression_steps(self) -> int:
        """How many steps regress: none where the layers already give what the source gives, as after `identity`."""
        wanted = round(self.options.regression * self.options.steps)
        if self.source is None or self.retained is not None or not wanted:
            return 0
        with torch.no_grad(), self.device.autocast():
            return wanted if float(self._regression(0)) > NEGLIGIBLE else 0

    @torch.no_grad()
    def measured(self, step: int) -> dict[str, Any]:
        """A point of the curve after `step` steps."""
        windows = self.options.batch + (self.options.retain_batch if self.retained else 0)
        tokens = step * self.options.accumulate * windows * self.options.length
        point = {"step": step, "tokens": tokens, "perplexity": self._perplexity(self.text.held_out)}
        return point | ({"retained": self._perplexity(self.retained.held_out)} if self.retained else {})

    def _perplexity(self, windows: torch.Tensor) -> float:
        """exp of the mean next-token loss over int64 windows [N, length], one window at a time."""
        with self.device.autocast():
            losses = [next_token_loss(self.model, w[None].to(self.device.device)).item() for w in windows]
        mean = sum(losses) / len(losses)
        return math.exp(mean) if mean < 700 else math.inf

    def _accumulated(self, step: int, loss_of: Loss) -> float:
        """Add up the gradients of one step; returns its mean loss."""
        parts, total = self.options.accumulate, 0.0
        for part in range(parts):
            with self.device.autocast():
                loss = loss_of(step * parts + part) / parts
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _loss(self, number: int) -> torch.Tensor:
        ids = self._batch(self.text, number, self.options.batch)
        if self.source is None:
            return next_token_loss(self.model, ids)
        kinds = {"lm": False, "kl": True, "auto": self.retained is None}
        if kinds[self.options.loss]:
            loss = divergence(self.model, self.source, ids)
        else:
            loss = next_token_loss(self.model, ids)
        if self.retained is None:
            return loss
        kept = self._batch(self.retained, number, self.options.retain_batch)
        return loss + self.options.retain_weight * divergence(self.model, self.source, kept)

    def _regression(self, number: int) -> torch.Tensor:
        if self.source is None:
            raise ValueError("a regression needs a source")
        return regression(self.model, self.source, self._batch(self.text, number, self.options.batch))

    def _batch(self, windows: Windows, number: int, size: int) -> torch.Tensor:
        return windows.batch(number, size).to(self.device.device)


def follow_cores(model: UltraMemModel) -> None:
    """Let u and v follow the cores that learn. Raises CheckFailed where a core is no longer finite."""
    for layer in model.memory_layers:
        if layer.spec.scoring == "tucker" and layer.core.requires_grad:
            if not layer.core.isfinite().all():  # the decomposition would fail
                raise diverged("a core is not finite")
            layer.follow_core()
