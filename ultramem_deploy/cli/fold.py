"""`fold SRC OUT`."""

from __future__ import annotations

from typing import Any

import click

from .. import pipeline
from .options import StageOptions, dtype_option, jobs_option, stage_options, verb
from .output import counted, number, run_stage


@verb("fold", "healed folded --dtype float32")
@click.option("--mode", type=click.Choice(["expand"]), default="expand", show_default=True,
              help="expand: one physical row a virtual slot, already projected.")  # fmt: skip
@dtype_option
@jobs_option
@stage_options
def command(common: StageOptions, mode: str, dtype: str, jobs: int | None) -> None:
    """Fold the implicit value expansion of SRC into physical tables, so that its linear layers vanish; writes OUT."""
    run_stage(
        "fold",
        common,
        lambda progress: pipeline.fold(
            common.src,
            common.out,
            mode=mode,
            dtype=dtype,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            progress=progress,
        ),
        _summary,
        "export {out} {beside}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    return [
        f"{counted(len(result['layers']), 'layer')} folded; function preserved to max abs error "
        f"{number(result['max_abs_error'])}, relative {number(result['max_relative_error'])}",
        f"index agreement at least {result['min_index_agreement']:.4%}",
    ]
