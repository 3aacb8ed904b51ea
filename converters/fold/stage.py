"""The stage `fold`: a checkpoint with implicit value expansion in, one with expanded physical tables out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.carry import carry, staged
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.runtime.tokenizer import companion_files
from ultramem_deploy.spec import ModelSpec

from .expand import ExpandedLayer, expanded_spec, key_tasks

MODES = ("expand",)
DTYPES = ("keep", "float32", "bfloat16", "float16")


def fold_checkpoint(
    src: Path,
    out: Path,
    *,
    mode: str = "expand",
    dtype: str = "keep",
    overwrite: bool = False,
    copy: bool = False,
    jobs: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write `out`: the decoder's shards linked, tables expanded, keys normalised. Returns the preservation receipt.

    Products are computed in float64 and rounded once to `dtype` ("keep": that of the source's table).
    Raises InputError for an unknown mode, a model without foldable layers, or a disk that is too small.
    """
    if mode not in MODES:
        raise InputError(f"--mode: expected one of {', '.join(MODES)}, found {mode!r}")
    if dtype not in DTYPES:
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    spec, source = ModelSpec.load(src), Checkpoint.open(src)
    folded = expanded_spec(spec)
    # One thread a chunk: the bytes must not depend on how many cores a machine has.
    with (
        threadpool_limits(1),  # type: ignore[no-untyped-call]
        Stage(
            out,
            "fold",
            source_record(src),
            {"mode": mode, "dtype": dtype},
            overwrite=overwrite,
            copy=copy,
            jobs=jobs,
            progress=progress,
        ) as stage,
    ):
        if stage.up_to_date:
            return stage.receipt | {"up_to_date": True}
        _write(stage, spec, folded, source, None if dtype == "keep" else dtype)
        for file in companion_files(src):
            stage.link_file(file)
        stage.receipt = _receipt(stage, spec, folded, source)
    return stage.receipt | {"up_to_date": False}


def _write(stage: Stage, spec: ModelSpec, folded: ModelSpec, source: Checkpoint, dtype: str | None) -> None:
    memory: list[TensorTask] = []
    tables: list[TensorTask] = []
    for index in range(len(spec.memory)):
        memory += key_tasks(spec, index, source)
        tables += ExpandedLayer.of(spec, index, source).tasks(dtype)
    made = {task.name for task in memory + tables}
    unchanged = [name for name in tensor_layout(folded) if name not in made]
    carry(stage, source, [name for name in unchanged if not name.startswith("memory.")])
    memory += [TensorTask.copy(source, name) for name in unchanged if name.startswith("memory.")]
    stage.write_tensors("memory", memory)
    stage.write_tensors("tables", tables)
    stage.write_json("config.json", folded.to_config())


def _receipt(stage: Stage, spec: ModelSpec, folded: ModelSpec, source: Checkpoint) -> dict[str, Any]:
    from .receipt import fold_receipt

    return fold_receipt((spec, source), (folded, staged(stage)))
