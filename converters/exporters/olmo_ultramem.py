"""`convert --to olmo-ultramem`: the layout of the official training code, so that training can go on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint import Checkpoint, Stage, source_record
from ultramem_deploy.checkpoint.companions import companion_files
from ultramem_deploy.spec import ModelSpec

from .olmo_description import official_config, official_model
from .olmo_tensors import OfficialTensors
from .torch_file import write_torch_file

FAMILY = "olmo-ultramem"

Progress = Callable[[int, int, str], None]


def export_olmo_ultramem(
    src: Path,
    out: Path,
    *,
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Canonical checkpoint -> `out` with config.yaml and model.pt, which the official code and our importer read.

    A model trained with vertical parallel in which a value counts as padding is written as ranks, rank_{r}/model.pt.
    Returns family, tensors, bytes, warnings and up_to_date. Raises ConfigError, which lists everything, for a model
    that the layout cannot hold, folded ones among them, and InputError as `Stage` does.
    """
    spec, source = ModelSpec.load(src), Checkpoint.open(src)
    model = official_model(spec, f"{src}/config.json")
    tensors = OfficialTensors(spec, model, source)
    files = tensors.files()
    warnings = tensors.warnings + _token_warnings(spec)
    total = sum(task.nbytes for tasks in files.values() for task in tasks)
    count = max(len(tasks) for tasks in files.values())
    summary = {"family": FAMILY, "tensors": count, "bytes": total, "warnings": warnings}
    with Stage(out, "export-olmo-ultramem", source_record(src, jobs), {}, overwrite=overwrite, copy=copy) as stage:
        if not stage.up_to_date:
            stage.write_text("config.yaml", _yaml({"model": official_config(spec, model)}))
            on_bytes = _counter(total, progress)
            for name, tasks in files.items():
                (stage.workdir / name).parent.mkdir(exist_ok=True)
                write_torch_file(stage.workdir / name, tasks, on_bytes)
            for file in companion_files(src):
                stage.link_file(file)
            stage.receipt = dict(summary)
    return summary | {"up_to_date": stage.up_to_date} | stage.notes


def _counter(total: int, progress: Progress | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total, FAMILY)

    return on_bytes


def _token_warnings(spec: ModelSpec) -> list[str]:
    lost = [name for name, there in (("bos", spec.tokens.bos is not None), ("eos", len(spec.tokens.eos) > 1)) if there]
    return [f"tokens: the official config has one eos and no bos; lost: {', '.join(lost)}"] if lost else []


def _yaml(content: dict[str, Any]) -> str:
    yaml: Any = importlib.import_module("yaml")
    return str(yaml.safe_dump(content, sort_keys=True))
