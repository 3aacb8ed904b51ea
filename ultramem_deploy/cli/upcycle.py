"""`upcycle SRC OUT`."""

from __future__ import annotations

from typing import Any

import click

from .. import pipeline
from ..converters.upcycle.identity import IdentityOptions
from .options import StageOptions, dataclass_options, jobs_option, memory_budget_option, stage_options, verb
from .output import counted, run_stage


@verb("upcycle", "canonical upcycled --paths 18:20/22:24/26:28 --knum 128")
@click.option("--method", type=click.Choice(["identity"]), default="identity", show_default=True,
              help="identity: the outputs stay bit-identical until the memory is trained.")  # fmt: skip
@dataclass_options(IdentityOptions)
@jobs_option
@memory_budget_option
@stage_options
def command(common: StageOptions, method: str, jobs: int | None, memory_budget: int, **sizes: Any) -> None:
    """Add UltraMem memory layers on skip paths of the dense checkpoint SRC; writes OUT."""
    run_stage(
        "upcycle",
        common,
        lambda progress: pipeline.upcycle(
            common.src,
            common.out,
            method=method,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            memory_budget=memory_budget,
            progress=progress,
            **sizes,
        ),
        _summary,
        "heal {out} {beside}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    paths = ", ".join(result["memory_layers"])
    return [
        f"{counted(len(result['memory_layers']), 'memory layer')}, read:write {paths}",
        f"{result['parameters_total']:,} parameters, {result['parameters_table']:,} of them in tables, "
        f"{result['parameters_active']:,} active a token",
        f"preserving: {result['preserving']}",
    ]
