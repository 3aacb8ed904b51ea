"""The verbs as functions: what the command line calls and `import ultramem_deploy` offers.

Every stage takes a source and an output directory; `progress(done, total, what)` is called as it goes. Failures raise
`errors.InputError` (bad input or usage) or `errors.CheckFailed` (a comparison that failed).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .defaults import BATCHES, DEFAULT_BUDGET
from .errors import CheckFailed, InputError
from .units import parse_bytes

Budget = int | float | str
"""Bytes, or a size such as "2GiB"; bounds the chunks in memory, never changes a byte."""
Progress = Callable[[int, int, str], None]


def convert(
    src: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    to: str | None = None,
    dtype: str = "keep",
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: Budget = DEFAULT_BUDGET,
    executor: str = "local",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Source checkpoint -> canonical checkpoint; see `converters.importers.import_checkpoint`.

    `to` "olmo-ultramem" is the way back: canonical checkpoint -> official layout, tensors as they are stored.
    """
    from .converters.importers import import_checkpoint

    if to is not None:
        if to != "olmo-ultramem":
            raise InputError(f"--to: expected olmo-ultramem, found {to!r}")
        if family is not None or dtype != "keep":
            raise InputError("--to: takes neither --from nor --dtype: convert to the canonical form first")
        from .converters.exporters.olmo_ultramem import export_olmo_ultramem

        return export_olmo_ultramem(Path(src), Path(out), overwrite=overwrite, copy=copy, jobs=jobs, progress=progress)

    return import_checkpoint(
        Path(src), Path(out), family=family, dtype=dtype, overwrite=overwrite, copy=copy, jobs=jobs,
        memory_budget=_budget(memory_budget), executor=executor, progress=progress,
    )  # fmt: skip


def upcycle(
    src: str | Path,
    out: str | Path,
    *,
    method: str = "identity",
    text: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
    **sizes: Any,
) -> dict[str, Any]:
    """Dense canonical checkpoint -> one with memory layers.

    `method` "identity" puts them beside the FFNs, `sizes` being the fields of `IdentityOptions`; "neurons" makes the
    FFNs into them, fitted on `text`, `sizes` being the fields of `NeuronOptions`; "experts" does so with mixtures of
    experts, `sizes` being the fields of `ExpertOptions`.
    """
    common: dict[str, Any] = {
        "overwrite": overwrite, "copy": copy, "jobs": jobs, "memory_budget": _budget(memory_budget),
        "progress": progress,
    }  # fmt: skip
    if method == "neurons":
        from .converters.upcycle.neuron_options import NeuronOptions
        from .converters.upcycle.neuron_stage import upcycle_neurons

        return upcycle_neurons(Path(src), Path(out), text=_path(text), options=_options(NeuronOptions, sizes), **common)
    if method == "experts":
        from .converters.upcycle.expert_options import ExpertOptions
        from .converters.upcycle.expert_stage import upcycle_experts

        return upcycle_experts(Path(src), Path(out), text=_path(text), options=_options(ExpertOptions, sizes), **common)
    from .converters.upcycle.identity import IdentityOptions
    from .converters.upcycle.stage import upcycle_checkpoint

    if text is not None:
        raise InputError(f"--text: --method {method} reads no text; leave it out")
    options = _options(IdentityOptions, sizes)
    return upcycle_checkpoint(Path(src), Path(out), method=method, options=options, **common)


def heal(
    src: str | Path,
    out: str | Path,
    *,
    text: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Train the memory layers on text; `training` are the fields of `HealOptions`."""
    from .converters.heal.options import HealOptions
    from .converters.heal.stage import heal_checkpoint

    options = _options(HealOptions, training)
    return heal_checkpoint(
        Path(src), Path(out), text=_path(text), options=options, overwrite=overwrite, copy=copy, progress=progress
    )


def fold(
    src: str | Path,
    out: str | Path,
    *,
    mode: str | None = None,
    dtype: str = "keep",
    batch: int | Sequence[int] | None = None,
    order: str | None = None,
    profile: str | Path | None = None,
    text: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: Budget = DEFAULT_BUDGET,
    executor: str = "local",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fold tables, shuffles and keys; `batch` is for mode "auto". See `converters.fold.stage.fold_checkpoint`.

    `order` "frequency" instead packs rows by the accesses in `profile`, a file, or counted on `text`: see
    `converters.fold.order`.
    """
    from .converters.fold.order import order_checkpoint
    from .converters.fold.stage import fold_checkpoint

    if order is not None:
        if mode is not None or dtype != "keep" or batch is not None:
            raise InputError("--order: a fold of its own that rounds nothing; run fold with --mode first")
        return order_checkpoint(
            Path(src), Path(out), order=order, profile=_path(profile), text=_path(text), overwrite=overwrite, copy=copy,
            jobs=jobs, memory_budget=_budget(memory_budget), executor=executor, progress=progress,
        )  # fmt: skip
    if profile is not None or text is not None:
        raise InputError(f"--{'profile' if profile is not None else 'text'}: only --order frequency reads it")
    return fold_checkpoint(
        Path(src), Path(out), mode=mode or "expand", dtype=dtype, batches=None if batch is None else _batches(batch),
        overwrite=overwrite, copy=copy, jobs=jobs, memory_budget=_budget(memory_budget), executor=executor,
        progress=progress,
    )  # fmt: skip


def quantize(
    src: str | Path,
    out: str | Path,
    *,
    tables: str | None = None,
    dense: str | None = None,
    text: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Store tables as int8, int4 or float8_e4m3, dense weights as int8 or int4.

    See `converters.quantize.stage.quantize_checkpoint`.
    """
    from .converters.quantize.stage import quantize_checkpoint

    return quantize_checkpoint(
        Path(src), Path(out), tables=tables, dense=dense, text=_path(text), overwrite=overwrite, copy=copy, jobs=jobs,
        memory_budget=_budget(memory_budget), progress=progress,
    )  # fmt: skip


def export(
    src: str | Path,
    out: str | Path,
    *,
    target: str = "ort",
    overwrite: bool = False,
    copy: bool = False,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Canonical checkpoint -> ONNX bundle; see `converters.onnx.export_onnx`."""
    from .converters.onnx import export_onnx

    return export_onnx(
        Path(src), Path(out), target=target, overwrite=overwrite, copy=copy, memory_budget=_budget(memory_budget),
        progress=progress,
    )  # fmt: skip


def build(
    src: str | Path,
    out: str | Path,
    *,
    backend: str,
    workspace: Budget | None = None,
    timing_cache: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Canonical checkpoint or bundle -> TensorRT engine `out`, its manifest `out`.json, and OUT.model beside them.

    OUT.model is the portable bundle that the engine is built from and reads its tables from. `options` are the other
    fields of `converters.engine.BuildOptions`: shapes, dtype, mode, weight_streaming, hardware_compatible,
    version_compatible, embed_plugin, trace.
    """
    from .converters.engine import BuildOptions, build_engine, check_request
    from .converters.onnx import export_onnx
    from .runtime.engine_manifest import model_path

    engine, model = Path(out), model_path(Path(out))
    _known(BuildOptions, options)
    asked = BuildOptions(
        backend=backend,
        workspace=None if workspace is None else parse_bytes(workspace, "--workspace"),
        timing_cache=_path(timing_cache),
        **options,
    )
    check_request(engine, asked)
    export_onnx(
        Path(src), model, target="portable", overwrite=overwrite, copy=copy, memory_budget=_budget(memory_budget),
        progress=progress,
    )  # fmt: skip
    return build_engine(model, engine, asked, overwrite=overwrite, progress=progress)


def bundle(
    src: str | Path,
    out: str | Path,
    *,
    runtime: str = "onnxruntime",
    with_plugins: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Exported model -> bundle for C++ programs and ONNX Runtime GenAI; see `converters.bundle.make_bundle`."""
    from .converters.bundle import make_bundle

    return make_bundle(
        Path(src), Path(out), runtime=runtime, with_plugins=with_plugins, overwrite=overwrite, copy=copy,
        progress=progress,
    )  # fmt: skip


def triton_repository(
    src: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Exported model -> model repository of Triton Inference Server; see `converters.bundle.make_triton`."""
    from .converters.bundle import make_triton

    return make_triton(Path(src), Path(out), overwrite=overwrite, copy=copy, progress=progress)


def check_bundle(bundle: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Verify a bundle's hashes, versions and paths; raises CheckFailed with the first thing that is wrong."""
    from .converters.bundle import check_bundle as check

    return check(Path(bundle), progress=progress)


def plan(
    src: str | Path,
    *,
    stage: str | None = None,
    batch: int | Sequence[int] = BATCHES,
    memory_budget: Budget = DEFAULT_BUDGET,
    calibrate: bool = False,
    tables: str = "int8",
) -> dict[str, Any]:
    """What the stages would make of `src` and whether they fit, from headers and configurations alone.

    `stage` None plans the chain that makes sense for `src`; `calibrate` measures the machine first, beside `src`;
    `tables` is what stage "quantize" stores. Returns source, family, batches, memory_budget_bytes, layers, stages,
    prefill, profile, warnings and fits; sizes in bytes.
    Raises InputError for what cannot be planned; what does not fit is an answer, not an error.
    """
    from .forecasting import forecast
    from .planning.profile import calibrate as measure

    if calibrate:
        parent = Path(src).absolute().parent
        measure(parent if os.access(parent, os.W_OK) else None)
    return forecast(Path(src), stage, _batches(batch), _budget(memory_budget), tables)


def profile(
    model: str | Path,
    *,
    text: str | Path | None = None,
    tokens: int = 8192,
    runtime: str | None = None,
    out: str | Path | None = None,
    plot: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Count the accesses of every slot on text; `out` keeps them for `fold`, `plot` draws them. See `profiling`."""
    from . import profiling
    from .spec import ModelSpec

    told, counts = profiling.profile(Path(model), _path(text), tokens, runtime, progress)
    if out is not None:
        profiling.save(Path(out), ModelSpec.load(Path(model)), counts, told)
    if plot is not None:
        profiling.plot(Path(plot), ModelSpec.load(Path(model)), counts)
    return told


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    text: str | Path | None = None,
    tokens: int = 512,
    max_abs: float | None = None,
    kl: float | None = None,
    runtime: str | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare two artifacts; raises CheckFailed where they differ by more than the limits, unless `check` is False.

    Limits that are None follow from what is compared: see `tolerances`.
    """
    from .verification import compare

    result = compare(
        Path(reference),
        Path(candidate),
        text=_path(text),
        tokens=tokens,
        max_abs=max_abs,
        kl=kl,
        runtime=runtime,
        progress=progress,
    )
    if check and result.reason:
        raise CheckFailed(result.reason)
    return result.to_dict()


def generate(
    model: str | Path,
    *,
    prompt: str,
    max_new_tokens: int = 64,
    runtime: str | None = None,
    on_text: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Greedy continuation of `prompt`; `on_text` gets each new piece of text as it comes.

    Returns prompt, text, ids, prompt_tokens, runtime, prefill_seconds, decode_seconds and tokens_per_second.
    """
    from .runtime.generation import Generation, greedy
    from .runtime.opening import home, open_runner
    from .runtime.tokenizer import Tokenizer

    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens: must be positive, found {max_new_tokens}")
    path = Path(model)
    runner, tokenizer = open_runner(path, runtime), Tokenizer(home(path))
    ids = tokenizer.encode(prompt)
    if not ids:
        raise InputError("--prompt: holds no tokens; give some text to continue")
    positions = runner.spec.decoder.max_positions if runner.spec else None
    if positions is not None and len(ids) + max_new_tokens > positions:
        raise InputError(
            f"--max-new-tokens: {len(ids)} tokens of prompt and {max_new_tokens} new ones exceed the model's "
            f"{positions} positions; ask for at most {max(0, positions - len(ids))}"
        )
    stop = runner.spec.tokens.eos if runner.spec else ()
    record, shown = Generation(), ""
    for _ in greedy(runner, ids, max_new_tokens, stop, record):
        text = tokenizer.decode(record.ids)
        # A character may need several tokens: hold back until it is whole.
        if on_text and not text.endswith("\ufffd"):
            on_text(text[len(shown) :])
            shown = text
    text = tokenizer.decode(record.ids)
    if on_text and text != shown:
        on_text(text[len(shown) :])
    timing = {"prefill_seconds": record.prefill_seconds, "decode_seconds": record.decode_seconds}
    return {
        "prompt": prompt,
        "text": text,
        "ids": record.ids,
        "prompt_tokens": len(ids),
        "runtime": runner.name,
        **timing,
        "tokens_per_second": record.tokens_per_second,
    }


def diff(
    base: str | Path,
    changed: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What changed between two canonical checkpoints; see `converters.delta.stage.diff_checkpoints`."""
    from .converters.delta.stage import diff_checkpoints

    return diff_checkpoints(Path(base), Path(changed), _path(out), overwrite=overwrite, progress=progress)


def patch(
    base: str | Path,
    out: str | Path,
    *,
    delta: str | Path,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Apply a delta to the checkpoint it was made from; see `converters.delta.stage.patch_checkpoint`."""
    from .converters.delta.stage import patch_checkpoint

    return patch_checkpoint(
        Path(base), Path(delta), Path(out), overwrite=overwrite, copy=copy, jobs=jobs, progress=progress
    )


def _budget(value: Budget) -> int:
    return parse_bytes(value)


def _batches(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _options(kind: Any, given: dict[str, Any]) -> Any:
    _known(kind, given)
    return kind(**given)


def _known(kind: Any, given: dict[str, Any]) -> None:
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r}; expected some of {', '.join(names)}")
