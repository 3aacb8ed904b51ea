"""`upcycle --method experts` as a stage: calibrate where columns are to be chosen, write, measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, Stage, source_record
from ultramem_deploy.checkpoint.budget import chunks_in_flight
from ultramem_deploy.checkpoint.carry import carry, staged
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import UltraMemModel, load
from ultramem_deploy.model.loading import assemble
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.runtime.tokenizer import Tokenizer
from ultramem_deploy.spec import ExpertsSpec, ModelSpec
from ultramem_deploy.text import Corpus, load_corpus

from .calibration import shuffled_windows
from .expert_columns import Columns, Routed, fitted_columns, plain_columns, popular_columns, random_columns
from .expert_options import ExpertOptions, check_expert_options, source_tensors
from .expert_receipt import collect, expert_costs, measure_experts, mixtures
from .experts import expert_spec, expert_tasks
from .remembering import remembered
from .writing import Writing


def upcycle_experts(
    src: Path,
    out: Path,
    *,
    text: Path | None = None,
    options: ExpertOptions | None = None,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Write `out`: every mixture of experts of `src` as a memory layer. Returns the receipt.

    Below `active` 1 columns are fitted on `text` (None: the Python language reference), and the receipt measures on a
    held-out tenth of its documents; a model without a tokenizer is converted at `active` 1 and not measured. Raises
    InputError for a model or options that cannot work, or a text that is too short.
    """
    options = options or ExpertOptions()
    spec, source = ModelSpec.load(src), Checkpoint.open(src)
    experts = check_expert_options(spec, options)
    corpus, tokenizer = _readable(src, text, options)
    settings = {"method": "experts", **asdict(options), **_named(corpus)}
    new_spec = expert_spec(spec, experts, options.active)
    progress = writing.get("progress")
    with Stage(out, "upcycle", source_record(src), settings, **writing) as stage:
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True}
        model = load(src, dtype="float32") if corpus else None
        train, held_out = _windows(tokenizer, corpus, options, spec) if tokenizer and corpus else (None, None)
        data = collect(model, train, progress) if model is not None and train is not None else None
        columns = _remembered_columns(stage, lambda: _columns(model, data, experts, spec.decoder.hidden_size, options))
        memory, tables = expert_tasks(source, experts, columns)
        chunks_in_flight([*memory, *tables], 1, writing.get("memory_budget"))
        replaced = {name for block in experts.layers for name in source_tensors(spec.decoder, block)}
        stage.require_room({"memory": memory, "tables": tables}, carried=source.files)
        carry(stage, source, [name for name in tensor_layout(spec) if name not in replaced], "decoder")
        stage.write_tensors("memory", memory)
        stage.write_tensors("tables", tables)
        stage.write_json("config.json", new_spec.to_config())
        for file in companion_files(src):
            stage.link_file(file)
        stage.receipt = _receipt(spec, new_spec, experts, options, corpus)
        if model is not None and held_out is not None and data is not None:
            upcycled = assemble(new_spec, staged(stage), "float32")
            stage.receipt |= measure_experts(
                model, upcycled, data, [c.order for c in columns], held_out, options, progress
            )
    return stage.receipt | {"up_to_date": False} | stage.notes


def _readable(src: Path, text: Path | None, options: ExpertOptions) -> tuple[Corpus | None, Tokenizer | None]:
    """The text and the tokenizer to read it with; neither where they are not needed and not there."""
    if not (src / "tokenizer.json").is_file():
        if text is None and options.active == 1:
            return None, None
        raise InputError(
            f"{src}: tokenizer.json is missing: text cannot be read; put it there, or convert all neurons "
            "(--active 1) without --text"
        )
    return load_corpus(text), Tokenizer(src)


def _named(corpus: Corpus | None) -> dict[str, Any]:
    return {"text": corpus.name, "text_sha256": corpus.sha256} if corpus else {}


def _windows(
    tokenizer: Tokenizer, corpus: Corpus, options: ExpertOptions, spec: ModelSpec
) -> tuple[np.ndarray, np.ndarray]:
    longest = spec.decoder.max_positions
    train = shuffled_windows(tokenizer, corpus.train, options.calibration_tokens, longest)
    return train, shuffled_windows(tokenizer, corpus.held_out, options.held_out_tokens, longest)


def _remembered_columns(stage: Stage, fit: Callable[[], list[Columns]]) -> list[Columns]:
    names = [field.name for field in fields(Columns)]

    def stacked() -> dict[str, np.ndarray]:
        blocks = fit()
        return {name: np.stack([getattr(columns, name) for columns in blocks]) for name in names}

    found = remembered(stage.resume_file("columns.safetensors"), stacked)
    return [Columns(*parts) for parts in zip(*(found[name] for name in names), strict=True)]


def _columns(
    model: UltraMemModel | None, data: list[Routed] | None, experts: ExpertsSpec, hidden: int, options: ExpertOptions
) -> list[Columns]:
    count, width = experts.count, experts.width
    if options.columns == "random":
        return [random_columns(count, width, hidden, options.seed + block) for block in experts.layers]
    if options.active == 1 or model is None or data is None:
        return [plain_columns(count, width, hidden) for _ in experts.layers]
    fit = popular_columns if options.columns == "popular" else fitted_columns
    return [fit(mixture, routed) for mixture, routed in zip(mixtures(model), data, strict=True)]


def _receipt(
    spec: ModelSpec, new_spec: ModelSpec, experts: ExpertsSpec, options: ExpertOptions, corpus: Corpus | None
) -> dict[str, Any]:
    exact = "exact: every neuron of the chosen experts is taken" if options.active == 1 else "not preserving"
    return {
        "method": "experts",
        "text": corpus.name if corpus else None,
        "memory_layers": [f"{s.read_block}:{s.write_block}" for s in new_spec.memory],
        "preserving": exact,
        **expert_costs(experts, new_spec, options),
        **parameter_counts(new_spec),
    }
