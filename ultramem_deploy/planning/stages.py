"""What a stage takes: peak memory, output and disk bytes, time; pure functions of its tensors and the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..checkpoint.header import itemsize
from ..checkpoint.writer import chunk_elements
from ..units import size
from .profile import MachineProfile


@dataclass(frozen=True)
class Piece:
    """One tensor of a stage's output, as numbers: what computing it reads and multiplies, or that it is linked.

    `scratch` is held beside a chunk's result; `gathered` are bytes read row by row, `flops` multiply-add operations.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    linked: bool = False
    read: int = 0
    gathered: int = 0
    flops: float = 0.0
    scratch: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk while it is computed."""
        return chunk_elements(self.shape, self.dtype) * itemsize(self.dtype) + self.scratch


@dataclass(frozen=True)
class StageWork:
    """All that a stage does. `hashed` bytes are read to identify the source, `held` stay in memory beside the chunks.

    `less_disk` and `less_memory` say what to do where those are short, as the end of a sentence.
    """

    stage: str
    pieces: Sequence[Piece]
    hashed: int = 0
    held: int = 0
    extra_disk: int = 0
    less_disk: str = "free some space"
    less_memory: str = ""


@dataclass(frozen=True)
class Machine:
    """What a stage may use: threads, bytes of memory budget, bytes of memory available, rates."""

    jobs: int
    budget: int
    memory: int
    profile: MachineProfile


@dataclass(frozen=True)
class StagePlan:
    """One entry of a plan's "stages"."""

    stage: str
    peak_memory_bytes: int
    output_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int
    seconds: float
    fits: bool
    short: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def plan_stage(work: StageWork, machine: Machine, disk_free: int) -> StagePlan:
    """The stage on this machine, with `disk_free` bytes free where its output goes."""
    made = [piece for piece in work.pieces if not piece.linked]
    chunk = max((piece.chunk_bytes for piece in made), default=0)
    in_flight = max(1, min(machine.jobs + 1, (machine.budget - work.held) // chunk)) if chunk else 0
    peak = work.held + in_flight * chunk
    disk = sum(piece.nbytes for piece in made) + work.extra_disk
    problems = [
        (_lack("memory budget", peak, machine.budget), _budget_advice(peak)),
        (_lack("memory", peak, machine.memory), work.less_memory or "free some memory"),
        (_lack("disk", disk, disk_free), work.less_disk),
    ]
    found = [(short, advice) for short, advice in problems if short]
    return StagePlan(
        stage=work.stage,
        peak_memory_bytes=peak,
        output_bytes=sum(piece.nbytes for piece in work.pieces) + work.extra_disk,
        disk_needed_bytes=disk,
        disk_free_bytes=disk_free,
        seconds=round(seconds(work, machine.profile, machine.jobs), 2),
        fits=not found,
        short=[short for short, _ in found],
        advice=[advice for _, advice in found],
    )


def seconds(work: StageWork, profile: MachineProfile, cores: int) -> float:
    """Predicted time: everything overlaps, so it is the slowest of moving the bytes, of hashing one file from front to
    back, and of all that the cores have to do.
    """
    made = [piece for piece in work.pieces if not piece.linked]
    written, read = sum(piece.nbytes for piece in made), sum(piece.read for piece in made)
    moving = read / profile.read_bytes_per_second + written / profile.write_bytes_per_second
    hashing = max(written, work.hashed) / profile.hash_bytes_per_second
    computing = sum(piece.flops for piece in made) / profile.gemm_flops_per_second
    computing += sum(piece.gathered for piece in made) / profile.random_row_bytes_per_second
    computing += (written + work.hashed) / (profile.hash_bytes_per_second * cores)
    return max(moving, hashing, computing)


def _lack(what: str, needed: int, available: int) -> str:
    if needed <= available:
        return ""
    return f"{what}: {size(needed)} needed, {size(available)} there, {size(needed - available)} short"


def _budget_advice(needed: int) -> str:
    return f"give --memory-budget {-(-needed // (1 << 20))}MiB or more"
