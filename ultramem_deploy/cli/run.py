"""`run RECIPE SRC OUT`."""

from __future__ import annotations

from typing import Any

import click

from ..cookbook import running
from ..cookbook.files import setting
from .options import StageOptions, jobs_option, memory_budget_option, stage_options, verb
from .output import print_json, progress_bar, size


@verb("run", "upcycle-identity SmolLM2-135M made --set heal.steps=100")
@click.argument("recipe")
@click.option("--set", "settings", metavar="STAGE.OPTION=VALUE", multiple=True, help="Replace an option of the recipe.")
@jobs_option
@memory_budget_option
@stage_options
def command(common: StageOptions, recipe: str, settings: tuple[str, ...], jobs: int | None, memory_budget: int) -> None:
    """Run the stages of RECIPE from SRC; each writes a directory of its name below OUT.

    RECIPE is a name that `recipes ls` prints, or the path of a file. Run the same command again after an interruption:
    what is up to date is not made again.
    """
    result = running.run(
        recipe,
        common.src,
        common.out,
        settings=dict(setting(one) for one in settings),
        overwrite=common.overwrite,
        copy=common.copy,
        jobs=jobs,
        memory_budget=memory_budget,
        watch=lambda name: progress_bar(name, common.quiet),
    )
    if common.as_json:
        print_json(result)
        return
    for line in _table(result["stages"]):
        click.echo(line)
    click.echo(f"run: {result['recipe']} made {result['output']} in {result['seconds']:.1f} s")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Columns below one another: stage, output, seconds, bytes, and the key figure of the receipt."""
    cells = [("stage", "output", "seconds", "size", "result")]
    for row in rows:
        seconds = "up to date" if row["up_to_date"] else f"{row['seconds']:.1f}"
        cells.append((row["name"], row["output"], seconds, size(row["bytes"]), row["figure"]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
