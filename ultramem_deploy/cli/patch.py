"""`patch SRC OUT --delta DELTA`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from .options import EXISTING, StageOptions, jobs_option, memory_budget_option, stage_options, verb
from .output import counted, run_stage


@verb("patch", "healed tuned --delta tuned-delta")
@click.option("--delta", type=EXISTING, required=True, help="What `diff --out` wrote for this source.")
@jobs_option
@memory_budget_option
@stage_options
def command(common: StageOptions, delta: Path, jobs: int | None, memory_budget: int) -> None:
    """Apply a delta to SRC, the checkpoint it was made from, and write OUT."""
    run_stage(
        "patch",
        common,
        lambda progress: pipeline.patch(
            common.src,
            common.out,
            delta=delta,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            memory_budget=memory_budget,
            progress=progress,
        ),
        _summary,
        "inspect {out}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    return [f"{counted(result['tensors'], 'tensor')} changed, {counted(result['rows'], 'row')}"]
