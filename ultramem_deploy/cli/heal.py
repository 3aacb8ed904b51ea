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
@dataclass_options(HealOptions)
@stage_options
def command(common: StageOptions, text: Path | None, **training: Any) -> None:
    """Train the memory layers of SRC on text, a tenth of it held out, and write OUT; dense weights stay as they are."""
    run_stage(
        "heal",
        common,
        lambda progress: pipeline.heal(
            common.src,
            common.out,
            text=text,
            overwrite=common.overwrite,
            copy=common.copy,
            progress=progress,
            **training,
        ),
        _summary,
        "fold {out} {beside}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    before, after = result["perplexity_before"], result["perplexity_after"]
    resumed = f", resumed at step {result['resumed_at_step']}" if result.get("resumed_at_step") else ""
    return [
        f"{result['tokens']:,} tokens of {result['text']}{resumed}",
        f"held-out perplexity {number(before, 4)} -> {number(after, 4)}",
    ]
