"""`plan SRC`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import pipeline
from .options import EXISTING, batch_option, json_option, memory_budget_option, tables_option, verb
from .output import console, print_json, size

if TYPE_CHECKING:
    from rich.table import Table


@verb("plan", "canonical --batch 1,64 --memory-budget 1GiB")
@click.argument("src", type=EXISTING)
@click.option("--stage", type=click.Choice(["convert", "fold", "quantize", "export"]),
              help="Plan this stage alone. Default: the chain that makes sense for SRC.")  # fmt: skip
@tables_option(default="int8", show_default=True)
@batch_option(default="1,16,64,512", show_default=True, help="Tokens a step, one or several.")
@memory_budget_option
@click.option("--calibrate", is_flag=True, help="Measure this machine first (10 s) and keep its profile.")
@json_option
def command(
    src: Path,
    stage: str | None,
    tables: str,
    batch: tuple[int, ...],
    memory_budget: int,
    calibrate: bool,
    as_json: bool,
) -> None:
    """Say what each stage would make of SRC: fold choices, bytes read a token, memory, disk, time; from headers."""
    result = pipeline.plan(
        src, stage=stage, batch=batch, memory_budget=memory_budget, calibrate=calibrate, tables=tables
    )
    if as_json:
        print_json(result)
        return
    from rich.text import Text

    out = console()
    out.print(Text(f"{src}: {result['family']}", style="bold"))
    if result["layers"]:
        out.print(_layers(result))
        for line in _reasons(result["layers"]):
            out.print(Text(line))
    if result["stages"]:
        out.print(_stages(result["stages"]))
    for line in _remarks(result):
        out.print(Text(line))


def _layers(result: dict[str, Any]) -> Table:
    table = _table("memory layers, bytes a token before and after", "layer", "choice", "table")
    for batch in result["batches"]:
        table.add_column(f"batch {batch}", justify="right")
    for layer in result["layers"]:
        read = zip(layer["bytes_per_token_before"].values(), layer["bytes_per_token_after"].values(), strict=True)
        sizes = [(layer["table_bytes_before"], layer["table_bytes_after"]), *read]
        table.add_row(str(layer["layer"]), _choice(layer), *(f"{size(a)}\n{size(b)}" for a, b in sizes))
    return table


def _choice(layer: dict[str, Any]) -> str:
    both = layer["rank_one_keys"] and layer["choice"] not in ("rank-1 keys", "none")
    return f"{layer['choice']}, rank-1 keys" if both else str(layer["choice"])


def _reasons(layers: list[dict[str, Any]]) -> list[str]:
    """A line a reason, with the layers that share it."""
    alike: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        alike.setdefault((_choice(layer), layer["reason"]), []).append(str(layer["layer"]))
    return [
        f"{'layer' if len(same) == 1 else 'layers'} {', '.join(same)}: {choice}: {reason}"
        for (choice, reason), same in alike.items()
    ]


def _stages(stages: list[dict[str, Any]]) -> Table:
    table = _table("stages", "stage", "peak memory", "output", "disk needed", "disk free", "time", "fits")
    for stage in stages:
        names = ("peak_memory_bytes", "output_bytes", "disk_needed_bytes", "disk_free_bytes")
        fits = "yes" if stage["fits"] else "NO"
        table.add_row(stage["stage"], *(size(stage[name]) for name in names), _time(stage["seconds"]), fits)
    return table


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 or column == "choice" else "right")
    return table


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _remarks(result: dict[str, Any]) -> list[str]:
    lines = [f"warning: {warning}" for warning in result["warnings"]]
    for stage in result["stages"]:
        pairs = zip(stage["short"], stage["advice"], strict=True)
        lines += [f"{stage['stage']} does not fit: {short}; {advice}" for short, advice in pairs]
    prefill = result["prefill"]
    if prefill["peak_memory_bytes"]:
        peak = size(prefill["peak_memory_bytes"])
        lines.append(f"prefill: {prefill['tokens_at_once']} tokens at once, memory layers hold up to {peak} meanwhile")
    profile = result["profile"]
    hint = "" if profile["source"] == "measured" else "; `plan SRC --calibrate` measures this machine"
    lines.append(f"times: {profile['source']} profile, {profile['machine']}{hint}")
    return [*lines, "fits" if result["fits"] else "does not fit"]
