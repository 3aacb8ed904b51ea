"""The 151M step on a table of 40 GB, more than the memory, against a resident one with rows of the same size.

PyTorch, bfloat16, one token a step, batch 64, KV 256. Contenders take turns on the same tokens; before each cold step
all pages of the table are given up and evicted (posix_fadvise), so every row that it reads comes from the disk, and the
bytes that it had read are counted. A warm step repeats the tokens of the cold one before it.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.big import forget, workspace
from benchmarks.common import bytes_read, median
from benchmarks.memory_model import write_source
from ultramem_deploy.model import KVCache, UltraMemModel, load
from ultramem_deploy.planning.machine import total_memory
from ultramem_deploy.spec import ModelSpec

WANTED, MARGIN, DENSE = 40e9, 8e9, 0.5e9
RESIDENT_SIDE = 2048
MADV_DONTNEED = 4
Spec = Callable[[int], ModelSpec]


def side_of(free: float, row_bytes: int) -> int | None:
    """Keys a side of a table of 40 GB, or of what the disk holds beside `MARGIN`; None below 1.2 times the memory."""
    resident = RESIDENT_SIDE**2 * row_bytes
    room = min(WANTED, free - MARGIN - 2 * DENSE - resident)
    if room < 1.2 * total_memory():
        return None
    side = int((room / row_bytes) ** 0.5) // 64 * 64
    return side + 64 if room == WANTED else side


class Contender:
    """One step of a model over a cache of random keys and values that all contenders share."""

    def __init__(self, model: UltraMemModel, cache: KVCache, history: int, overlap: bool) -> None:
        self.model, self.cache, self.past, self.overlap = model, cache, history - 1, overlap

    def __call__(self, ids: torch.Tensor) -> float:
        """Seconds of the step of ids [B, 1]."""
        self.model.overlap, self.cache.length = self.overlap, self.past
        start = time.perf_counter()
        self.model(ids, cache=self.cache)
        return time.perf_counter() - start


@torch.inference_mode()
def from_disk(scratch: Path, spec_of: Spec, batch: int, history: int, threads: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each contender, and the bytes read from the disk; or why it was skipped."""
    width = next(iter(spec_of(64).tables.values())).value_width
    free = shutil.disk_usage(scratch).free
    side = side_of(free, 2 * width)
    if side is None:
        needed = 1.2 * total_memory() + MARGIN + 2 * DENSE
        return {"skipped": f"{free / 1e9:.0f} GB of disk are free, {needed / 1e9:.0f} are needed"}
    torch.set_num_threads(threads)
    size = 2 * width * side**2
    with workspace(scratch, int(size + MARGIN), "scale-disk") as folder:
        start = time.perf_counter()
        write_source(folder / "mapped", spec_of(side))
        written = size / (time.perf_counter() - start)
        write_source(folder / "resident", spec_of(RESIDENT_SIDE))
        rows = _steps(folder, batch, history, rounds)
    return {"table_gb": size / 1e9, "memory_gb": total_memory() / 1e9, "written_gb_per_second": written / 1e9} | rows


def _steps(folder: Path, batch: int, history: int, rounds: int) -> dict[str, Any]:
    mapped = load(folder / "mapped", tables="mapped")
    resident = load(folder / "resident", tables="resident")
    cache = _cache(resident.spec, batch, history)
    contenders = {"overlap": Contender(mapped, cache, history, True), "alone": Contender(mapped, cache, history, False)}
    held = Contender(resident, cache, history, False)
    file = max((folder / "mapped").glob("*.safetensors"), key=lambda f: f.stat().st_size)
    seconds: dict[str, list[float]] = {}
    reads: dict[str, list[int]] = {}

    def timed(name: str, step: Contender, ids: torch.Tensor) -> None:
        before = bytes_read()
        seconds.setdefault(name, []).append(step(ids))
        reads.setdefault(name, []).append(bytes_read() - before)

    vocab = resident.spec.decoder.vocab_size
    generator = torch.Generator().manual_seed(0)
    for turn in range(rounds + 1):
        ids = torch.randint(vocab, (batch, 1), generator=generator)
        timed("resident", held, ids)
        for name in sorted(contenders, reverse=turn % 2 == 1):
            give_up(mapped, file)
            timed(f"cold {name}", contenders[name], ids)
            timed(f"warm {name}", contenders[name], ids)
    # The first round finds neither code nor weights in the caches.
    medians = {name: median(values[1:]) for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: batch / value for name, value in medians.items()},
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        "mb_read_a_step": {name: median(values[1:]) / 1e6 for name, values in reads.items()},
        "cold_overlap_over_alone": medians["cold alone"] / medians["cold overlap"],
        "cold_over_resident": medians["cold overlap"] / medians["resident"],
        "warm_over_resident": medians["warm overlap"] / medians["resident"],
    }


def _cache(spec: ModelSpec, batch: int, history: int) -> KVCache:
    d, cache = spec.decoder, KVCache(spec.decoder)
    for layer in range(d.num_layers):
        keys, values = torch.rand(2, batch, d.num_kv_heads, history, d.head_dim).sub_(0.5).bfloat16()
        cache.append(layer, keys, values)
    return cache


def give_up(model: UltraMemModel, file: Path) -> None:
    """Leave no page of the model's mapped table in memory: eviction passes over pages that are mapped."""
    for table in model.tables.values():
        begin = -(-table.values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = table.values.data_ptr() + table.values.nbytes - begin
        if ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), MADV_DONTNEED):
            raise OSError(f"{file}: the system keeps its pages mapped")
    forget(file)
