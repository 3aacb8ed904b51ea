"""One table that every contender reads, on huge pages with distinct bytes on each, and the loads-alone limit."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import c_int64, c_void_p
from pathlib import Path

import torch

from benchmarks.native import Tasks

HUGE_PAGE = 2 << 20
TASKS = 64


class Touch(ctypes.Structure):
    """Touch of touch.cpp."""

    _fields_ = (
        ("table", c_void_p),
        ("addresses", c_void_p),
        ("count", c_int64),
        ("row_bytes", c_int64),
        ("bytes_ahead", c_int64),
        ("tasks", c_int64),
        ("sink", c_void_p),
    )


class Fill(ctypes.Structure):
    """Fill of touch.cpp."""

    _fields_ = (("words", c_void_p), ("count", c_int64), ("tasks", c_int64))


class Rows:
    """`size` bytes on transparent huge pages (`huge_share` of them in fact), and random addresses into them."""

    def __init__(self, size: int, addresses: int = 1 << 22) -> None:
        self._tasks = Tasks("touch.cpp")
        self.bytes = huge(size)
        fill = Fill(self.bytes.data_ptr(), size // 8, TASKS)
        self._tasks.run("fill_task", fill, TASKS)
        self.huge_share = _huge_bytes(self.bytes.data_ptr()) / size
        self._random = torch.randint(0, 1 << 62, (addresses,), generator=torch.Generator().manual_seed(0))
        self._at = 0

    def table(self, dtype: torch.dtype, columns: int) -> torch.Tensor:
        """As many rows [N, columns] of this dtype as there are whole ones."""
        row = columns * dtype.itemsize
        rows = len(self.bytes) // row
        return self.bytes[: rows * row].view(dtype).view(rows, columns)

    def addresses(self, rows: int, tokens: int, slots: int) -> torch.Tensor:
        """Random addresses [tokens, slots] below `rows`, others at each call."""
        count = tokens * slots
        if self._at + count > len(self._random):
            self._at = 0
        part = self._random[self._at : self._at + count]
        self._at += count
        return (part % rows).reshape(tokens, slots)

    def touch(self, table: torch.Tensor, addresses: torch.Tensor, bytes_ahead: int) -> None:
        """Load every line of these rows, of whole lines, once, on as many threads as PyTorch has."""
        sink = (c_int64 * TASKS)()
        tasks = max(1, min(TASKS, 4 * torch.get_num_threads(), addresses.numel() // 16))
        row_bytes = table.shape[1] * table.element_size()
        problem = Touch(table.data_ptr(), addresses.data_ptr(), addresses.numel(), row_bytes, bytes_ahead, tasks)
        problem.sink = ctypes.addressof(sink)
        self._tasks.run("touch_task", problem, tasks)


def huge(size: int) -> torch.Tensor:
    """`size` bytes, zero, on transparent huge pages where the system has them to give."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # holds the mapping
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + size]


def _huge_bytes(address: int) -> int:
    """Bytes on huge pages of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(x, 16) for x in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) << 10
    return 0
