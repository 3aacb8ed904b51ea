"""How many chunks may be in flight within a memory budget; the chunk grid itself never depends on it."""

from __future__ import annotations

from collections.abc import Sequence

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.checkpoint.writer import TensorTask
from ultramem_deploy.errors import InputError
from ultramem_deploy.units import size


def chunk_bytes(task: TensorTask) -> int:
    """Bytes that one chunk of `task` takes while it is computed: its largest result and the work beside it."""
    return task.chunk_nbytes + task.scratch if task.chunk_nbytes else 0


def chunks_in_flight(tasks: Sequence[TensorTask], jobs: int, budget: int | None, held: int = 0) -> int:
    """Chunks that `jobs` threads may hold at a time within `budget` bytes: at most jobs + 1, at least 1.

    `held` bytes of the budget are taken all the while. InputError where not even one chunk of the largest task fits;
    None is no bound.
    """
    largest = max(tasks, key=chunk_bytes, default=None)
    if budget is None or largest is None or chunk_bytes(largest) == 0:
        return jobs + 1
    needed = chunk_bytes(largest) + held
    if needed > budget:
        raise InputError(
            f"--memory-budget: one chunk of tensor {shown(largest.name)} needs {size(needed)}, the budget is"
            f" {size(budget)}: {size(needed - budget)} short; give --memory-budget {_whole_mebibytes(needed)} or more"
        )
    return min(jobs + 1, (budget - held) // chunk_bytes(largest))


def processes_within(tasks: Sequence[TensorTask], jobs: int, budget: int | None, held: int = 0) -> int:
    """Processes that may compute at a time, each one chunk and `held` bytes, beside one result more than there are.

    At most `jobs`, at least 1; InputError as for `chunks_in_flight`.
    """
    chunks_in_flight(tasks, 1, budget, held)
    result = max((task.chunk_nbytes for task in tasks), default=0)
    each = 2 * result + max((task.scratch for task in tasks), default=0) + held
    return jobs if budget is None or each == 0 else max(1, min(jobs, (budget - result) // each))


def _whole_mebibytes(count: int) -> str:
    return f"{-(-count // (1 << 20))}MiB"
