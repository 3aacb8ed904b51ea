"""`export SRC OUT`."""

from __future__ import annotations

from typing import Any

import click

from .. import pipeline
from .options import StageOptions, memory_budget_option, stage_options, verb
from .output import counted, run_stage, size


@verb("export", "folded bundle --target ort")
@click.option("--target", type=click.Choice(["ort", "portable"]), default="ort", show_default=True,
              help="ort: ONNX Runtime's own attention where it is faster. portable: standard operators beside ours.",
              )  # fmt: skip
@memory_budget_option
@stage_options
def command(common: StageOptions, target: str, memory_budget: int) -> None:
    """Export the canonical checkpoint SRC to the ONNX bundle OUT; its weights stay in the linked safetensors files."""
    run_stage(
        "export",
        common,
        lambda progress: pipeline.export(
            common.src,
            common.out,
            target=target,
            overwrite=common.overwrite,
            copy=common.copy,
            memory_budget=memory_budget,
            progress=progress,
        ),
        _summary,
        "verify {src} {out}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    shared = sum(how != "copy" for how in result["weights"].values())
    return [
        f"model.onnx for {result['target']}: {result['nodes']} nodes, {size(result['bytes_written'])} written",
        f"{counted(len(result['weights']), 'weight file')}, {shared} shared with the checkpoint",
    ]
