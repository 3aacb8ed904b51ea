"""`convert SRC OUT`."""

from __future__ import annotations

from typing import Any

import click

from .. import pipeline
from .options import StageOptions, dtype_option, executor_option, jobs_option, memory_budget_option, stage_options, verb
from .output import counted, run_stage, size


@verb("convert", "SmolLM2-135M canonical --dtype float32")
@click.option("--from", "family", metavar="FAMILY", help="Source family, where the metadata does not tell.")
@click.option("--to", type=click.Choice(["olmo-ultramem"]), help="The way back: SRC is canonical, OUT official.")
@dtype_option
@jobs_option
@memory_budget_option
@executor_option
@stage_options
def command(
    common: StageOptions,
    family: str | None,
    to: str | None,
    dtype: str,
    jobs: int | None,
    memory_budget: int,
    executor: str,
) -> None:
    """Turn SRC into the canonical checkpoint OUT.

    SRC is a Hugging Face directory, a GGUF file, or what a training run of the official UltraMem code or of Meta's
    memory layers left. Shards that need no change are hard-linked. The result computes what the source computes.
    """
    run_stage(
        "convert",
        common,
        lambda progress: pipeline.convert(
            common.src,
            common.out,
            family=family,
            to=to,
            dtype=dtype,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            memory_budget=memory_budget,
            executor=executor,
            progress=progress,
        ),
        _summary,
        _then,
    )


def _summary(result: dict[str, Any]) -> list[str]:
    taken = [f"{counted(result[how], 'source file')} {how}" for how in ("linked", "copied") if result.get(how)]
    how = " and ".join(taken) or "written anew"
    return [f"{result['family']}, {result['tensors']} tensors, {size(result['bytes'])}, {how}"]


def _then(result: dict[str, Any]) -> str:
    if "memory_layers" not in result:
        return "inspect {out}"
    return "fold {out} {beside}" if result["memory_layers"] else "upcycle {out} {beside}"
