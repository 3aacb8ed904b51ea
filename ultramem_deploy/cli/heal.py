"""`heal SRC OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from ..converters.heal.options import HealOptions
from .options import EXISTING, StageOptions, dataclass_options, stage_options, verb
from .output import number, run_stage


@verb("heal", "upcycled healed --text corpus.txt --steps 60")
@click.option("--text", type=EXISTING, help="UTF-8 text to train on. Default: the Python language reference.")
@click.option(
    "--distill", type=EXISTING, help="The model to learn from: what SRC was made of, or its Hugging Face source."
)
@click.option("--retain", type=EXISTING, help="UTF-8 text on which to go on predicting what --distill predicts.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the held-out perplexity over the tokens, PNG.")
@dataclass_options(HealOptions)
@stage_options
def command(common: StageOptions, **options: Any) -> None:
    """Train the memory layers of SRC on text, a tenth of it held out, and write OUT."""
    run_stage(
        "heal",
        common,
        lambda progress: pipeline.heal(
            common.src,
            common.out,
            overwrite=common.overwrite,
            copy=common.copy,
            progress=progress,
            **options,
        ),
        _summary,
        "fold {out} {beside}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    before, after = result["perplexity_before"], result["perplexity_after"]
    resumed = f", resumed at step {result['resumed_at_step']}" if result.get("resumed_at_step") else ""
    stopped = f", stopped early; kept step {result['kept_step']}" if result["stopped_early"] else ""
    return [
        f"{result['tokens']:,} tokens of {result['text']}{resumed}{stopped}",
        f"held-out perplexity {number(before, 4)} -> {number(after, 4)}",
        *_curve(result["curve"]),
    ]


def _curve(points: list[dict[str, Any]]) -> list[str]:
    names = [name for name in ("perplexity", "retained") if name in points[0]]
    rows = [[f"{p['step']}", f"{p['tokens']:,}", *(number(p[name], 4) for name in names)] for p in points]
    return ["  ".join(f"{cell:>12}" for cell in row) for row in (["step", "tokens", *names], *rows)]
