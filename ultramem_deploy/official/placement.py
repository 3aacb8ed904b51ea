"""Where the memory layers of the official code read and write, and which of them it loses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..checkpoint.header import shown

FULL = "full"
NO_MEMORY = "no_mem"
_PATH = re.compile(r"(\d{1,6}):(\d{1,6})")


@dataclass(frozen=True)
class Placement:
    """Memory layer `index` of the checkpoint; `lost` says why its output never arrives, or is empty."""

    index: int
    read: int
    write: int
    lost: str = ""


def parse_paths(way: str, layers: int) -> tuple[Placement, ...]:
    """The placement of every memory layer. ValueError says why the official code could not run a path list."""
    if way == FULL:
        return tuple(Placement(index, index, index) for index in range(layers))
    found = [_PATH.fullmatch(part) for part in way.split("/")]
    if not all(found):
        raise ValueError(f"expected {FULL}, {NO_MEMORY} or read:write/read:write/…, found {shown(way)}")
    paths = [(int(match[1]), int(match[2])) for match in found if match]
    reads = [read for read, _ in paths]
    twice = sorted({read for read in reads if reads.count(read) > 1})
    if twice:
        raise ValueError(
            f"block {twice[0]} is read by {reads.count(twice[0])} paths, with which the official code cannot run"
        )
    return tuple(
        Placement(index, read, write, _lost(paths, read, write, layers)) for index, (read, write) in enumerate(paths)
    )


def _lost(paths: list[tuple[int, int]], read: int, write: int, layers: int) -> str:
    """Why the output of path read:write is never added; empty where it is.

    There is one pending output: a block that is read replaces it before the block's own write is looked at.
    """
    if read >= layers or write >= layers:
        return f"there are {layers} blocks"
    if write < read:
        return "it would be written before it is read"
    between = [other for other, _ in paths if read < other <= write]
    return f"path {min(between)} is read before block {write} is done and replaces it" if between else ""
