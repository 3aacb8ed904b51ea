"""`build SRC OUT.engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from ..units import parse_bytes
from .options import StageOptions, memory_budget_option, stage_options, verb
from .output import counted, run_stage, size


def _workspace(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_bytes(value, param.opts[0])


@verb("build", "folded demo.engine --backend tensorrt-rtx --shapes 1x1,1x512,4x2048")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    required=True,
    help="tensorrt: operators as plugins, needs a GPU here. tensorrt-rtx: builds without a GPU.",
)
@click.option(
    "--shapes",
    metavar="MIN,OPT,MAX",
    help="Batch and context, such as 1x1,1x512,4x2048 (BATCHxTOKENS, prompt and continuation together).",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "tf32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Matrix products and the cache; retrieval, norms and softmax stay float32.",
)
@click.option(
    "--mode",
    type=click.Choice(["portable", "plugin"]),
    help="The memory operators as standard ones or as plugins. Default: plugin for tensorrt.",
)
@click.option(
    "--tables",
    type=click.Choice(["inputs", "resource"]),
    default="inputs",
    show_default=True,
    help="Tables as inputs that the runner binds, or loaded by the plugins themselves.",
)
@click.option("--workspace", metavar="SIZE", callback=_workspace, help="Scratch memory that a layer may take.")
@click.option("--aux-streams", type=int, help="CUDA streams for branches that can run beside others.")
@click.option(
    "--timing-cache", type=click.Path(dir_okay=False, path_type=Path), help="Timings to start from and to write back."
)
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory and travel as they are needed.")
@click.option("--hardware-compatible", is_flag=True, help="Runs on every GPU from compute capability 8.0 on.")
@click.option("--version-compatible", is_flag=True, help="Runs on newer releases of the same major version.")
@click.option("--embed-plugin", is_flag=True, help="Put the plugin library into the engine.")
@click.option("--trace", is_flag=True, help="Show each memory layer's choice and output, for `verify`.")
@memory_budget_option
@stage_options
def command(common: StageOptions, **options: Any) -> None:
    """Build the TensorRT engine OUT (NAME.engine) from SRC, a canonical checkpoint or a bundle.

    Beside it come OUT.json, which says what the engine needs, and NAME.model with its tables: keep the three together.
    """
    run_stage(
        "build",
        common,
        lambda progress: pipeline.build(
            common.src, common.out, overwrite=common.overwrite, copy=common.copy, progress=progress, **options
        ),
        _summary,
        "verify {src} {out}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    tables = result["tables"]
    profiles = ", ".join(profile["name"] for profile in result["profiles"])
    return [
        f"{result['backend']} {result['backend_version']}, {result['mode']} mode, {result['dtype']}: "
        f"{size(result['engine_bytes'])}, {counted(result['layers'], 'layer')}, profiles {profiles}",
        f"{counted(len(tables), 'table')} outside the engine, {size(sum(tables.values()))}",
    ]
