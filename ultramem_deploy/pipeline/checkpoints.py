"""The stages that make one checkpoint from another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..defaults import DEFAULT_BUDGET
from ..errors import InputError
from ..option_problems import refuse
from .arguments import Budget, Progress, as_batches, as_budget, as_options, as_path


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
    from ..converters.importers import import_checkpoint

    if to is not None:
        if to != "olmo-ultramem":
            raise InputError(f"--to: expected olmo-ultramem, found {to!r}")
        if family is not None or dtype != "keep":
            raise InputError("--to: takes neither --from nor --dtype: convert to the canonical form first")
        from ..converters.exporters.olmo_ultramem import export_olmo_ultramem

        return export_olmo_ultramem(Path(src), Path(out), overwrite=overwrite, copy=copy, jobs=jobs, progress=progress)

    return import_checkpoint(
        Path(src), Path(out), family=family, dtype=dtype, overwrite=overwrite, copy=copy, jobs=jobs,
        memory_budget=as_budget(memory_budget), executor=executor, progress=progress,
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
    from ..converters.upcycle.writing import Writing

    source, target = Path(src), Path(out)
    writing: Writing = {
        "overwrite": overwrite, "copy": copy, "jobs": jobs, "memory_budget": as_budget(memory_budget),
        "progress": progress,
    }  # fmt: skip
    if method == "neurons":
        from ..converters.upcycle.neuron_options import NeuronOptions
        from ..converters.upcycle.neuron_stage import upcycle_neurons

        return upcycle_neurons(source, target, text=as_path(text), options=as_options(NeuronOptions, sizes), **writing)
    if method == "experts":
        from ..converters.upcycle.expert_options import ExpertOptions
        from ..converters.upcycle.expert_stage import upcycle_experts

        return upcycle_experts(source, target, text=as_path(text), options=as_options(ExpertOptions, sizes), **writing)
    from ..converters.upcycle.identity_options import IdentityOptions
    from ..converters.upcycle.stage import upcycle_checkpoint

    if text is not None:
        raise InputError(f"--text: --method {method} reads no text; leave it out")
    options = as_options(IdentityOptions, sizes)
    return upcycle_checkpoint(source, target, method=method, options=options, **writing)


def heal(
    src: str | Path,
    out: str | Path,
    *,
    text: str | Path | None = None,
    distill: str | Path | None = None,
    retain: str | Path | None = None,
    plot: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    progress: Progress | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Train the memory layers on text; `training` are the fields of `HealOptions`.

    `distill` is the model to learn from, in any form that `convert` reads; see `converters.heal.stage`.
    """
    from ..converters.heal.options import HealOptions
    from ..converters.heal.stage import heal_checkpoint

    options = as_options(HealOptions, training)
    with _canonical(as_path(distill), Path(out)) as source:
        return heal_checkpoint(
            Path(src), Path(out), text=as_path(text), distil=source, retain=as_path(retain), picture=as_path(plot),
            options=options, overwrite=overwrite, copy=copy, progress=progress,
        )  # fmt: skip


@contextmanager
def _canonical(model: Path | None, beside: Path) -> Iterator[Path | None]:
    """`model` as a canonical checkpoint: itself, or converted into a hidden folder that lasts as long as the context.

    What a killed run left of that folder is taken up.
    """
    from ..checkpoint.partial import Partial
    from ..spec import MODEL_TYPE, read_json

    if model is None:
        yield None
        return
    config = model / "config.json"
    if config.is_file() and read_json(config).get("model_type") == MODEL_TYPE:
        yield model
        return
    out = beside.resolve()
    folder = Partial(out.with_name(f".{out.name}.distill"))
    try:
        folder.acquire()
    except OSError as error:
        raise InputError(f"{out}: cannot be made: {error.strerror or error}; choose another directory") from None
    try:
        target = folder.path / model.resolve().name
        convert(model, target, overwrite=True)
        yield target
    finally:
        folder.discard()


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
    from ..converters.fold.options import fold_problems
    from ..converters.fold.order import order_checkpoint
    from ..converters.fold.stage import fold_checkpoint

    batches = None if batch is None else as_batches(batch)
    refuse(fold_problems(mode=mode, dtype=dtype, batch=batches, order=order, profile=profile, text=text))
    if order is not None:
        return order_checkpoint(
            Path(src), Path(out), order=order, profile=as_path(profile), text=as_path(text), overwrite=overwrite,
            copy=copy, jobs=jobs, memory_budget=as_budget(memory_budget), executor=executor, progress=progress,
        )  # fmt: skip
    return fold_checkpoint(
        Path(src), Path(out), mode=mode or "expand", dtype=dtype, batches=batches, overwrite=overwrite, copy=copy,
        jobs=jobs, memory_budget=as_budget(memory_budget), executor=executor, progress=progress,
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
    from ..converters.quantize.stage import quantize_checkpoint

    return quantize_checkpoint(
        Path(src), Path(out), tables=tables, dense=dense, text=as_path(text), overwrite=overwrite, copy=copy, jobs=jobs,
        memory_budget=as_budget(memory_budget), progress=progress,
    )  # fmt: skip


def diff(
    base: str | Path,
    changed: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What changed between two canonical checkpoints; see `converters.delta.stage.diff_checkpoints`."""
    from ..converters.delta.stage import diff_checkpoints

    budget = as_budget(memory_budget)
    return diff_checkpoints(
        Path(base), Path(changed), as_path(out), overwrite=overwrite, memory_budget=budget, progress=progress
    )


def patch(
    base: str | Path,
    out: str | Path,
    *,
    delta: str | Path,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    memory_budget: Budget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Apply a delta to the checkpoint it was made from; see `converters.delta.stage.patch_checkpoint`."""
    from ..converters.delta.stage import patch_checkpoint

    return patch_checkpoint(
        Path(base),
        Path(delta),
        Path(out),
        overwrite=overwrite,
        copy=copy,
        jobs=jobs,
        memory_budget=as_budget(memory_budget),
        progress=progress,
    )
