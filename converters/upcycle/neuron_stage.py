"""`upcycle --method neurons` as a stage: calibrate, plan, write, measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.carry import carry, staged
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import load
from ultramem_deploy.model.loading import assemble
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.spec import ModelSpec
from ultramem_deploy.text import load_corpus

from .calibration import calibrate, shuffled_windows
from .neuron_options import NeuronOptions, check_neuron_options
from .neurons import BlockCurve, block_curves, neuron_spec, neuron_tasks, plan_blocks
from .receipt import costs, measure
from .remembering import remembered
from .writing import Writing


def upcycle_neurons(
    src: Path,
    out: Path,
    *,
    text: Path | None = None,
    options: NeuronOptions | None = None,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Write `out`: the FFNs of the dense checkpoint `src` as memory layers fitted on `text`. Returns the receipt.

    `text` None is the Python language reference; a tenth of its documents is held out for the receipt. Raises
    InputError for a model or options that cannot work, or a text that is too short.
    """
    options = options or NeuronOptions()
    spec = ModelSpec.load(src)
    check_neuron_options(spec, options)
    source, corpus, tokenizer = Checkpoint.open(src), load_corpus(text), Tokenizer(src)
    stage_options = {"method": "neurons", **asdict(options), "text": corpus.name, "text_sha256": corpus.sha256}
    progress = writing.get("progress")
    with Stage(out, "upcycle", source_record(src), stage_options, **writing) as stage:
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True}
        longest = spec.decoder.max_positions
        windows = shuffled_windows(tokenizer, corpus.train, options.calibration_tokens, longest)
        held_out = shuffled_windows(tokenizer, corpus.held_out, options.held_out_tokens, longest)
        dtype = source.info("model.layers.0.mlp.up_proj.weight").dtype
        dense = load(src, dtype="float32")
        statistics = calibrate(dense, windows, progress)
        exact = dtype != "float32"
        curves = _remembered_curves(stage, lambda: block_curves(dense, statistics, options, exact_scales=exact))
        plans = plan_blocks(curves, options)
        new_spec, groups = neuron_spec(spec, plans), neuron_tasks(source, plans)
        chunks_in_flight([task for tasks in groups.values() for task in tasks], 1, writing.get("memory_budget"))
        _write(stage, source, new_spec, groups)
        stage.write_json("config.json", new_spec.to_config())
        for file in companion_files(src):
            stage.link_file(file)
        upcycled = assemble(new_spec, staged(stage), "float32")
        stage.receipt = {
            "method": "neurons",
            "text": corpus.name,
            "calibration_tokens": windows.size,
            "held_out_tokens": held_out.size,
            "memory_layers": [f"{s.read_block}:{s.write_block}" for s in new_spec.memory],
            **costs(plans, spec.decoder.intermediate_size, spec.decoder.hidden_size, dtype),
            **parameter_counts(new_spec),
            **measure(dense, upcycled, plans, statistics, held_out, progress),
        }
    return stage.receipt | {"up_to_date": False} | stage.notes


def _remembered_curves(stage: Stage, fit: Callable[[], list[BlockCurve]]) -> list[BlockCurve]:
    def stacked() -> dict[str, np.ndarray]:
        curves = fit()
        return {
            "scale": np.stack([curve.scale.numpy() for curve in curves]),
            "shared": np.stack([curve.shared.numpy() for curve in curves]),
            "counts": np.array([list(curve.errors) for curve in curves], np.int64),
            "errors": np.array([list(curve.errors.values()) for curve in curves], np.float64),
        }

    found = remembered(stage.resume_file("curves.safetensors"), stacked)
    errors = [
        dict(zip(*pair, strict=True)) for pair in zip(found["counts"].tolist(), found["errors"].tolist(), strict=True)
    ]
    scales, shared = (torch.from_numpy(found[name]) for name in ("scale", "shared"))
    return [BlockCurve(*parts) for parts in zip(scales, shared, errors, strict=True)]


def _write(stage: Stage, source: Checkpoint, spec: ModelSpec, groups: dict[str, list[TensorTask]]) -> None:
    """Write the new tensors and carry the others over."""
    new = {task.name for tasks in groups.values() for task in tasks}
    stage.require_room(groups, carried=source.files)
    carry(stage, source, [name for name in tensor_layout(spec) if name not in new], "decoder")
    for group, tasks in groups.items():
        if tasks:
            stage.write_tensors(group, tasks)
