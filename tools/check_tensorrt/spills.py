"""Reads ptxas's reports: registers, spills and stack of every kernel on every architecture."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<sm>\w+)'")
STACK = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill")
USED = re.compile(r"Used (?P<registers>\d+) registers")


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture, as ptxas compiled it; sizes in bytes a thread."""

    name: str
    sm: str
    stack: int
    spilled: int
    registers: int


def kernels(reports: Iterable[Path]) -> list[Kernel]:
    """Every kernel in the reports, in their order. Raises ValueError where a report breaks off."""
    return [kernel for report in reports for kernel in parse(report.read_text())]


def parse(report: str) -> list[Kernel]:
    """The kernels of one report. Raises ValueError where one has no properties or no register count."""
    entries = list(ENTRY.finditer(report))
    ends = [entry.start() for entry in entries[1:]] + [len(report)]
    return [_kernel(entry, report[entry.end() : end]) for entry, end in zip(entries, ends, strict=True)]


def _kernel(entry: re.Match[str], properties: str) -> Kernel:
    stack, used = STACK.search(properties), USED.search(properties)
    if stack is None or used is None:
        raise ValueError(f"ptxas says nothing of {entry['name']} on sm_{entry['sm']}")
    spilled = int(stack["stores"]) + int(stack["loads"])
    return Kernel(entry["name"], entry["sm"], int(stack["stack"]), spilled, int(used["registers"]))
