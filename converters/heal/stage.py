"""The stage `heal`: a checkpoint with memory layers in, the same with trained memory layers out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, numpy_dtype, source_record
from ultramem_deploy.checkpoint.carry import carry, missing_bytes
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.checkpoint.files import require_space
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.output_file import check_picture
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.text import Corpus, load_corpus

from .checks import check_gradients, check_options, check_source
from .curve import plot
from .data import Windows
from .devices import open_device
from .models import changed_tensors, source_model, training_model
from .options import HealOptions
from .run import Progress, Run
from .schedule import with_rates
from .state import disk_needed
from .train import Trainer

SAVE_EVERY = 25
STATE_NAME, BEST_NAME = "training.safetensors", "best.safetensors"


def heal_checkpoint(
    src: Path,
    out: Path,
    *,
    text: Path | None = None,
    distil: Path | None = None,
    retain: Path | None = None,
    picture: Path | None = None,
    options: HealOptions | None = None,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the memory layers of `src` on `text` (default: the Python language reference) and write `out`.

    `distil` is the canonical checkpoint to learn from; `retain` a text on which the model is to go on predicting what
    that one predicts; `picture` a PNG of the curve. Returns the receipt: held-out perplexity before and after (8
    windows of 512 tokens) and on the way (`curve`), and the losses; `resumed_at_step` is the first step run where an
    interrupted run went on. Raises InputError for a model without memory layers, an invalid option or a text that is
    too short, CheckFailed where training diverges.
    """
    options = options or HealOptions()
    spec, source = ModelSpec.load(src), Checkpoint.open(src)
    check_options(spec, options)
    check_gradients(spec, source, options.train)
    check_source(spec, distil, retain, options)
    options = with_rates(options, spec, source)
    if picture:
        check_picture(picture)
    corpus, kept = load_corpus(text), load_corpus(retain, "--retain") if retain else None
    records = [source_record(path) for path in (src, distil) if path]
    run: Run | None = None
    with Stage(out, "heal", records, _settings(options, corpus, kept), overwrite=overwrite, copy=copy) as stage:
        if not stage.up_to_date:
            model = training_model(spec, source, options)
            _require_room(stage, model, source, options)
            teacher = source_model(distil, options) if distil else None
            trainer = _trainer(model, teacher, corpus, kept, Tokenizer(src), options)
            files = [stage.resume_file(name) for name in (STATE_NAME, BEST_NAME)]
            run = Run(trainer, files[0], files[1], SAVE_EVERY, progress)
            stage.receipt = {"text": corpus.name, **run.train(source)}
            _write(stage, model, source)
            stage.write_json("config.json", spec.to_config())
            for file in companion_files(src):
                stage.link_file(file)
    if picture:
        plot(picture, stage.receipt)
    # Told, not recorded: the receipt of a resumed run is that of an uninterrupted one.
    resumed = {"resumed_at_step": run.resumed_at} if run and run.resumed_at else {}
    return stage.receipt | {"up_to_date": stage.up_to_date} | resumed | stage.notes


def _settings(options: HealOptions, corpus: Corpus, kept: Corpus | None) -> dict[str, Any]:
    """All that decides the output."""
    settings = {**asdict(options), "text": corpus.name, "text_sha256": corpus.sha256}
    return settings | ({"retain": kept.name, "retain_sha256": kept.sha256} if kept else {})


def _trainer(
    model: UltraMemModel,
    teacher: UltraMemModel | None,
    corpus: Corpus,
    kept: Corpus | None,
    tokenizer: Tokenizer,
    options: HealOptions,
) -> Trainer:
    device = open_device(options)
    longest = model.spec.decoder.max_positions

    def windows(text: Corpus, seed: int) -> Windows:
        return Windows.of(text, tokenizer, options.length, longest, seed)

    return Trainer(
        model.to(device.device),
        teacher.to(device.device) if teacher else None,
        windows(corpus, options.seed),
        windows(kept, options.seed + 1) if kept else None,
        options,
        device,
    )


def _require_room(stage: Stage, model: UltraMemModel, source: Checkpoint, options: HealOptions) -> None:
    """InputError before any training where the disk cannot hold the result and what an interrupted run goes on from."""
    changed = changed_tensors(model)
    needed = sum(source.info(name).nbytes for name in changed)
    needed += missing_bytes(stage, source, [name for name in tensor_layout(model.spec) if name not in changed])
    needed += disk_needed(model, saved=options.steps > SAVE_EVERY, best=bool(options.patience))
    files = [stage.resume_file(name) for name in (STATE_NAME, BEST_NAME)]
    held = sum(file.stat().st_size for file in files if file.is_file())
    require_space(stage.workdir, needed - held, "the trained tensors and the state of 'heal'")


def _write(stage: Stage, model: UltraMemModel, source: Checkpoint) -> None:
    """Link what training left alone, write the rest as the source stores it."""
    changed = changed_tensors(model)
    layout = tensor_layout(model.spec)
    carry(stage, source, [name for name in layout if name not in changed])
    for group, prefix in (("memory", "memory."), ("tables", "tables."), ("decoder", ("model.", "lm_head."))):
        names = [name for name in changed if name.startswith(prefix)]
        if names:
            stage.write_tensors(group, [_task(name, changed[name], source.info(name).dtype) for name in names])


def _task(name: str, tensor: torch.Tensor, dtype: str) -> TensorTask:
    stored = tensor.to("cpu", getattr(torch, dtype)).contiguous()

    def rows(start: int, stop: int) -> np.ndarray:
        return stored[start:stop].view(torch.uint8).numpy().view(numpy_dtype(dtype))

    return TensorTask(name, dtype, tuple(tensor.shape), rows)
