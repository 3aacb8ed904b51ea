"""The stage `heal`: a checkpoint with memory layers in, the same with trained memory layers out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, numpy_dtype, source_record
from ultramem_deploy.checkpoint.carry import carry
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.text import Corpus, load_corpus, token_windows

from .checks import check_gradients, check_options, check_trained
from .options import HealOptions
from .train import (
    load_state,
    make_optimizer,
    perplexity,
    save_state,
    train_steps,
    training_model,
)

SAVE_EVERY = 25
HELD_OUT_WINDOWS, HELD_OUT_LENGTH = 8, 512
STATE_NAME = "training.safetensors"

Progress = Callable[[int, int, str], None]


def heal_checkpoint(
    src: Path,
    out: Path,
    *,
    text: Path | None = None,
    options: HealOptions | None = None,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the memory layers of `src` on `text` (default: the Python language reference) and write `out`.

    Returns the receipt: held-out perplexity before and after (8 windows of 512 tokens, dense weights in bfloat16) and
    the loss curve; `resumed_at_step` is the first step run where an interrupted run went on. Raises InputError for a
    model without memory layers, an invalid option or a text that is too short, CheckFailed where training diverges.
    """
    options = options or HealOptions()
    spec, source = ModelSpec.load(src), Checkpoint.open(src)
    check_options(spec, options)
    check_gradients(spec, source, options.train)
    corpus = load_corpus(text)
    settings = {**asdict(options), "text": corpus.name, "text_sha256": corpus.sha256}
    with Stage(out, "heal", source_record(src), settings, overwrite=overwrite, copy=copy) as stage:
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True}
        model = training_model(spec, source, options)
        run = _Run(model, source, options, stage.resume_file(STATE_NAME), progress)
        stage.receipt = {"text": corpus.name, **run.train(corpus, Tokenizer(src))}
        _write(stage, model, source)
        stage.write_json("config.json", spec.to_config())
        for file in companion_files(src):
            stage.link_file(file)
    # Told, not recorded: the receipt of a resumed run is that of an uninterrupted one.
    resumed = {"resumed_at_step": run.resumed_at} if run.resumed_at else {}
    return stage.receipt | {"up_to_date": False} | resumed | stage.notes


@dataclass
class _Run:
    """One training run: `state` is the file that lets it go on after an interruption, `resumed_at` the step it did."""

    model: UltraMemModel
    source: Checkpoint
    options: HealOptions
    state: Path
    progress: Progress | None
    resumed_at: int | None = None

    def train(self, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
        """Train and measure; returns the numbers of the receipt."""
        options = self.options
        windows = torch.from_numpy(token_windows(tokenizer, corpus.train, options.length))
        held_out = torch.from_numpy(_held_out(tokenizer, corpus, self.model.spec))
        before = perplexity(self.model, held_out)
        losses = self._steps(windows)
        after = perplexity(self.model, held_out)
        check_trained(self.model, self.source, held_out[0], after)
        return {
            "tokens": options.steps * options.batch * options.length,
            "perplexity_before": before,
            "perplexity_after": after,
            "losses": losses,
        }

    def _steps(self, windows: torch.Tensor) -> list[float]:
        total = self.options.steps
        optimizer = make_optimizer(self.model, self.options)
        losses = load_state(self.state, self.model, optimizer)
        self.resumed_at = len(losses) + 1 if losses else None
        for step, loss in train_steps(self.model, optimizer, windows, self.options, len(losses)):
            losses.append(round(loss, 4))
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < total:
                save_state(self.state, self.model, optimizer, losses)
            if self.progress:
                self.progress(step + 1, total, f"loss {loss:.3f}")
        return losses


def _held_out(tokenizer: Tokenizer, corpus: Corpus, spec: ModelSpec) -> np.ndarray:
    length = min(HELD_OUT_LENGTH, spec.decoder.max_positions)
    with contextlib.suppress(InputError):
        return token_windows(tokenizer, corpus.held_out, length, HELD_OUT_WINDOWS)
    return token_windows(tokenizer, corpus.held_out, length)


def _write(stage: Stage, model: UltraMemModel, source: Checkpoint) -> None:
    layout = tensor_layout(model.spec)
    carry(stage, source, [name for name, tensor in layout.items() if tensor.role == "dense"], "decoder")
    trained = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for group, prefix in (("memory", "memory."), ("tables", "tables.")):
        names = [name for name in layout if name.startswith(prefix)]
        stage.write_tensors(group, [_task(name, trained[name], source.info(name).dtype) for name in names])


def _task(name: str, tensor: torch.Tensor, dtype: str) -> TensorTask:
    stored = tensor.to(getattr(torch, dtype)).contiguous()

    def rows(start: int, stop: int) -> np.ndarray:
        return stored[start:stop].view(torch.uint8).numpy().view(numpy_dtype(dtype))

    return TensorTask(name, dtype, tuple(tensor.shape), rows)
