"""The progress bar: done of total in bytes or counts, rate and time left. Imported where a terminal is watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..pipeline import Progress as Report
from .output import size

_COUNTED_IN_BYTES = 1 << 20


class AmountColumn(ProgressColumn):
    """ "120.0 MiB/513.2 MiB 210.4 MiB/s" where the total is large, "12/60 1.9/s" where it is not."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        if task.total >= _COUNTED_IN_BYTES:
            rate = f" {size(task.speed)}/s" if task.speed else ""
            return Text(f"{size(task.completed)}/{size(task.total)}{rate}")
        rate = f" {task.speed:.1f}/s" if task.speed else ""
        return Text(f"{task.completed:.0f}/{task.total:.0f}{rate}")


@contextmanager
def shown_progress(name: str) -> Iterator[Report]:
    """A bar on stderr that goes away when the work is done; yields the callback `progress(done, total, what)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        AmountColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[what]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None, what="")

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, what=what)

        yield advance
