"""What this machine has: free disk, memory, cores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .choice import Room


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_jobs() -> int:
    """Threads that a stage computes chunks with, unless told otherwise."""
    return min(8, cores())


def total_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes of physical memory that can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return total_memory()
    given = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return next(given, total_memory())


def free_disk(directory: Path) -> int:
    """Bytes free on the filesystem where `directory` lies or will lie."""
    where = directory.absolute()
    while not where.is_dir():
        where = where.parent
    return shutil.disk_usage(where).free


def new_table_room(out: Path) -> Room:
    """What new tables of the output `out` may take, its own earlier version counted as free.

    Else a finished or interrupted run's own files would change the choice of the next one.
    """
    made = out.resolve()
    held = sum(_own_bytes(path) for path in (made, made.with_name(made.name + ".partial")))
    return Room(free_disk(made.parent) + held, total_memory())


def _own_bytes(directory: Path) -> int:
    """Bytes of the files that lie there alone: removing a hard link frees nothing."""
    states = [Path(folder, name).lstat() for folder, _, names in os.walk(directory) for name in names]
    return sum(state.st_size for state in states if state.st_nlink == 1)
