"""What every benchmark prints beside its figures: the machine, the memory bandwidth, medians, one JSON line."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHORT_WAIT = {"GOMP_SPINCOUNT": "10000"}
"""Threads that wait long by spinning, as libgomp's do, make every operation wait where others want their core."""


def machine() -> dict[str, Any]:
    """Processor, cores of this process, memory and versions."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def read_bandwidth(mebibytes: int = 1024, repeats: int = 7) -> float:
    """Bytes a second of reading a buffer much larger than the caches, every core at once: the best of `repeats`.

    A sum and a matrix-vector product take turns: which of them reads faster differs between machines.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        buffer, vector = torch.ones(mebibytes << 8, 1024), torch.ones(1024)
        actions: dict[str, Callable[[], Any]] = {"sum": buffer.sum, "product": lambda: buffer @ vector}
        seconds = [value for values in interleaved(actions, repeats).values() for value in values]
        return 4 * buffer.numel() / min(seconds)
    finally:
        torch.set_num_threads(threads)


def interleaved(actions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each action, run in turn `repeats` times, so that the machine's moods meet all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats):
        names = list(actions)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            seconds[name].append(_timed(actions[name]))
    return seconds


def bytes_read() -> int:
    """What this process has had read from disks."""
    return int(_field("/proc/self/io", "read_bytes") or 0)


@cache
def share_pool(threads: int) -> None:
    """One pool for every ONNX Runtime session of the process that has `use_per_session_threads` off.

    A pool of its own for each session would spin after a run, on the cores of the session that comes next.
    """
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell; numbers to three significant digits."""
    cells = [list(header), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(result: dict[str, Any]) -> None:
    """The result as the last line."""
    print(json.dumps(result, sort_keys=True))


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _shown(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _field(file: str, name: str) -> str | None:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
