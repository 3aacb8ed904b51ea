"""Plans a conversion: what each stage would make of a model and whether it fits, from headers alone (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .converters.importers import ImportPlan, Source, open_source, plan_source
from .defaults import BATCHES, DEFAULT_BUDGET
from .errors import InputError
from .planning.choice import Choice, Room, choose_folds, folds_of, layer_report
from .planning.folds import folded_spec
from .planning.machine import available_memory, default_jobs, free_disk, total_memory
from .planning.profile import load_profile
from .planning.quantization import quantize_report, quantize_work
from .planning.sizes import prefill_bytes, prefill_chunk
from .planning.stages import Machine, StagePlan, StageWork, plan_stage
from .planning.work import Stored, Tensors, convert_work, converted, export_work, fold_work
from .spec import MODEL_TYPE, ModelSpec

STAGES = ("convert", "fold", "quantize", "export")


def forecast(
    path: Path,
    stage: str | None = None,
    batches: Sequence[int] = BATCHES,
    memory_budget: int = DEFAULT_BUDGET,
    tables: str = "int8",
) -> dict[str, Any]:
    """The plan of `stage`, or of the chain that makes sense for the model at `path`. See `pipeline.plan`."""
    if stage is not None and stage not in STAGES:
        raise InputError(f"--stage: expected one of {', '.join(STAGES)}, found {stage!r}")
    if not batches or min(batches) < 1:
        raise InputError(f"--batch: expected positive numbers, found {', '.join(map(str, batches)) or 'none'}")
    source = open_source(path)
    plan = plan_source(source)
    tensors = stored_tensors(plan)
    free = free_disk(path.absolute().parent)
    choices = _choices(plan.spec, converted(tensors), batches, free)
    stages = [stage] if stage else _chain(path, source, choices)
    works = _works(stages, plan, tensors, source, choices, tables)
    profile = load_profile()
    plans = _in_turn(works, Machine(default_jobs(), memory_budget, available_memory(), profile), free)
    dtypes = {name: tensor.dtype for name, tensor in converted(tensors).items()}
    if stage == "quantize":
        layers = [quantize_report(plan.spec, i, tables, dtypes, batches) for i in range(len(plan.spec.memory))]
    else:
        layers = [layer_report(plan.spec, i, choice, dtypes, batches) for i, choice in enumerate(choices)]
    return {
        "source": path.name or str(path),
        "family": plan.family,
        "batches": list(batches),
        "memory_budget_bytes": memory_budget,
        "layers": layers,
        "stages": [asdict(one) for one in plans],
        "prefill": _prefill(plan.spec, choices if "fold" in stages else []),
        "profile": asdict(profile),
        "warnings": plan.warnings,
        "fits": all(one.fits for one in plans),
    }


def stored_tensors(plan: ImportPlan) -> dict[str, Stored]:
    """The source's tensors by canonical name; `file` where every wanted tensor of that shard keeps name and dtype."""
    changed = {
        t.stored.file for n, t in plan.tensors.items() if t.stored and (t.stored.name, t.stored.dtype) != (n, t.dtype)
    }
    result = {}
    for name, tensor in plan.tensors.items():
        file = tensor.stored.file if tensor.stored and tensor.stored.file not in changed else None
        result[name] = Stored(tuple(tensor.shape), tensor.dtype, str(file) if file else None)
    return result


def _prefill(spec: ModelSpec, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens of a prompt fed at once, and the peak bytes that the memory layers hold meanwhile; after the folds."""
    after = folded_spec(spec, *folds_of(choices)) if choices else spec
    tokens = prefill_chunk(after)
    return {"tokens_at_once": tokens, "peak_memory_bytes": prefill_bytes(after, tokens)}


def _choices(spec: ModelSpec, tensors: Tensors, batches: Sequence[int], free: int) -> list[Choice]:
    if not spec.memory:
        return []
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return choose_folds(spec, dtypes, "auto", batches, Room(free, total_memory()))


def _chain(path: Path, source: Source, choices: Sequence[Choice]) -> list[str]:
    if (path / "model.onnx").is_file():
        return []
    first = [] if source.model_type == MODEL_TYPE else ["convert"]
    folds = any(choice.whole != "none" for choice in choices)
    return [*first, *(["fold"] if folds else []), "export"]


def _works(
    stages: Sequence[str], plan: ImportPlan, tensors: Tensors, source: Source, choices: Sequence[Choice], storage: str
) -> list[StageWork]:
    """The work of each stage on what the one before leaves."""
    works: list[StageWork] = []
    spec, current = plan.spec, tensors
    if stages[:1] != ["convert"]:
        current = converted(tensors)
    for stage in stages:
        if stage == "convert":
            works.append(convert_work(current, _hashed(source, plan)))
            current = converted(current)
        elif stage == "fold":
            if not spec.memory:
                raise InputError(
                    "--stage fold: the model has no memory layers; upcycle it first, or plan --stage export"
                )
            work, spec = fold_work(spec, current, *folds_of(choices))
            works.append(work)
            current = {piece.name: Stored(piece.shape, piece.dtype, piece.name) for piece in work.pieces}
        elif stage == "quantize":
            works.append(quantize_work(spec, current, storage))
        else:
            works.append(export_work(spec, current))
    return works


def _hashed(source: Source, plan: ImportPlan) -> int:
    """Bytes read to identify a source that no stage of ours made."""
    if source.model_type == MODEL_TYPE:
        return 0
    files = {t.stored.file for t in plan.tensors.values() if t.stored}
    return sum(file.stat().st_size for file in files) if files else _weight_bytes(source)


def _weight_bytes(source: Source) -> int:
    if source.gguf is not None:
        return source.gguf.stat().st_size
    endings = (".safetensors", ".pt", ".pth", ".bin", ".distcp")
    return sum(file.stat().st_size for file in source.path.rglob("*") if file.suffix in endings and file.is_file())


def _in_turn(works: Sequence[StageWork], machine: Machine, free: int) -> list[StagePlan]:
    """Each stage finds what the ones before it left of the disk."""
    plans = []
    for work in works:
        plans.append(plan_stage(work, machine, free))
        free = max(0, free - plans[-1].disk_needed_bytes)
    return plans
