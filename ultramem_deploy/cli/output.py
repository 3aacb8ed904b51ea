"""How results reach the terminal: a summary for people, or one JSON object."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..pipeline import Progress
from ..units import size as size
from .options import StageOptions

if TYPE_CHECKING:
    from rich.console import Console

Summary = Callable[[dict[str, Any]], Sequence[str]]


def run_stage(
    name: str,
    common: StageOptions,
    work: Callable[[Progress | None], dict[str, Any]],
    summary: Summary,
    then: str | Callable[[dict[str, Any]], str],
) -> None:
    """Run a stage with its progress bar, then print what it made and the command that comes next.

    `then` is that command's arguments, or finds them from the result; {out} in it is the output, {beside} a new name
    beside it.
    """
    with progress_bar(name, common.quiet) as progress:
        result = work(progress)
    if result.get("restarted"):
        click.echo(f"started over, the work of an interrupted run was thrown away: {result['restarted']}", err=True)
    if result.get("continued") or result.get("resumed"):
        click.echo(f"continued an interrupted run: {_reused(result)}", err=True)
    if common.as_json:
        print_json({"stage": name, "output": str(common.out), **result})
        return
    state = " (up to date)" if result.get("up_to_date") else ""
    click.echo(f"{name}: {common.out}{state}")
    for line in summary(result):
        click.echo(f"  {line}")
    for warning in result.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)
    arguments = then if isinstance(then, str) else then(result)
    click.echo(f"next: ultramem-deploy {_next(arguments, common)}")


def _reused(result: Mapping[str, Any]) -> str:
    parts = [f"{size(count)} of {file}" for file, count in result.get("continued", {}).items()]
    return ", ".join([*result.get("resumed", []), *parts])


def _next(then: str, common: StageOptions) -> str:
    verb_name = then.split()[0]
    out = common.out if common.out.name not in ("", "..") else common.out.resolve()
    beside = out.with_name(f"{out.name}-{verb_name}")
    return then.format(src=_quoted(common.src), out=_quoted(out), beside=_quoted(beside))


def _quoted(path: Path) -> str:
    """As a shell reads it; what begins with a dash would be read as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def progress_bar(name: str, quiet: bool) -> AbstractContextManager[Progress | None]:
    """A bar on stderr; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    from .bar import shown_progress

    return shown_progress(name)


def console() -> Console:
    """Where tables are printed: as wide as the terminal, 120 columns where there is none."""
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(width=None if terminal else 120, highlight=False)


def print_json(result: Mapping[str, Any]) -> None:
    """The result as one JSON object."""
    from ..checkpoint.provenance import plain

    click.echo(json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False))


def counted(count: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float | str | None, digits: int = 3) -> str:
    """A measured number; one that is not finite, which a recorded receipt spells as text, is told as such."""
    finite = value is not None and math.isfinite(float(value))
    return f"{value:.{digits}g}" if finite else "not finite"


def aligned(rows: Mapping[str, str]) -> list[str]:
    """ "name   value" lines, the values below one another."""
    width = max(map(len, rows), default=0)
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]
