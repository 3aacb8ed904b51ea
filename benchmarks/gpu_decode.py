"""A whole decoding step of P1's 1.6B model on a GPU against a mixture of experts, beside what its bytes allow.

    python benchmarks/gpu_decode.py --library libultramem_cuda.so [--json FILE]
    python benchmarks/gpu_decode.py --dry                                          # tiny, on the CPU: does it work?

Batches 1 to 4096 over KV caches of 64, 256 and 2048 places: projections, attention, FFNs, six memory layers (42 values
for each of two heads, E = 4, 1792² slots of 1024 numbers) and the head; each part and the whole step under CUDA graphs.
The peer has 2 of 34 experts in each of 32 blocks, by the faster of torch's grouped_mm and one GEMM an expert that was
reached; its routing is made beforehand. Tables are bfloat16, or int8 where those do not fit. A byte bound is the bytes
that a step must read (`decode_shapes.step_bytes`): over the measured copy bandwidth for a time, of two models for a
ratio. What needs more than 80% of the memory is skipped and listed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import print_table
from benchmarks.decode_shapes import EXPERTS, ITEM, Shape, step_bytes
from benchmarks.gpu_decode_parts import (
    HEADS,
    RANK,
    SPARSE_PARTS,
    TABLES,
    Decoder,
    Experts,
    Memory,
    Operators,
    Parts,
    References,
    in_turn,
)
from benchmarks.gpu_timing import copy_bandwidth, seconds
from tools.cuda_library import CudaLibrary

PATHS = ((3, 5), (8, 10), (13, 15), (18, 20), (23, 25), (28, 30))
LARGE = Shape("1.6B", 2048, 16, 5456, 50304, 32, PATHS, 42, 512, 1792, 1024)
TINY = Shape("tiny", 64, 2, 64, 96, 2, ((0, 1),), 4, 8, 8, 16)
BATCHES, HISTORIES = (1, 8, 64, 512, 4096), (64, 256, 2048)
SHARE = 0.8
Point = tuple[int, int]
Seconds = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One batch and KV length: seconds by part (and `step`) of both models, the bytes that each must read."""

    batch: int
    kv: int
    table: str
    product: str
    seconds: dict[str, Seconds]
    bytes: dict[str, Seconds]

    def told(self, bandwidth: float) -> dict[str, float]:
        """What is judged. `*_share`: the ratio over its byte bound; `memory_of_bound`: bound over measured time."""
        ours, peer = self.seconds["ultramem"], self.seconds["moe"]
        sparse = sum(ours[name] for name in SPARSE_PARTS)
        memory = sparse - ours["ffn"]
        bounds = {part: self._count("moe", part) / self._count("ultramem", part) for part in ("sparse", "step")}
        ratios = {"sparse": peer["ffn"] / sparse, "step": peer["step"] / ours["step"]}
        return {
            **{f"{part}_against_moe": ratios[part] for part in ratios},
            **{f"{part}_byte_bound": bounds[part] for part in ratios},
            **{f"{part}_share": ratios[part] / bounds[part] for part in ratios},
            "memory_of_bound": self.bytes["ultramem"]["memory"] / bandwidth / memory,
            "step_of_bound": self._count("ultramem", "step") / bandwidth / ours["step"],
        }

    def _count(self, kind: str, part: str) -> float:
        counted = self.bytes[kind]
        return counted["ffn"] + counted["memory"] if part == "sparse" else sum(counted.values())


def step_bytes_of(shape: Shape, kind: str, table: str, batch: int, kv: int) -> Seconds:
    """`decode_shapes.step_bytes`, with rows of int8 and a float32 scale where the tables are so."""
    counted = step_bytes(shape, {"ultramem": "unfolded", "moe": "moe"}[kind], batch, kv)
    if kind == "ultramem" and table == "int8":
        rows = len(shape.paths) * batch * HEADS * shape.top_m
        counted["memory"] -= rows * (shape.value_width * (ITEM - 1) - 4)
    return counted


def held_bytes(shape: Shape, kind: str, table: str, batch: int, kv: int) -> float:
    """Device memory of a model's weights and of the cache and activations of a step."""
    decoder = ITEM * (4 * shape.blocks * shape.hidden**2 + shape.vocab * shape.hidden)
    cache = ITEM * 2 * shape.blocks * batch * kv * shape.hidden
    scores = 8 * batch * 2 * HEADS * RANK * 2 * shape.side
    work = batch * (4 * shape.vocab + 32 * max(shape.inner, 4 * shape.value_width)) + scores
    if kind == "moe":
        return decoder + cache + work + ITEM * shape.blocks * EXPERTS * shape.expert_numbers
    row = shape.value_width * TABLES[table].itemsize + (4 if table == "int8" else 0)
    layer = shape.side**2 * (row + 8 * 4)
    keys = ITEM * (16 * shape.side * shape.key_width + shape.hidden * (2 * shape.key_width + 4 * shape.value_width))
    ffn = ITEM * shape.blocks * 3 * shape.hidden * shape.inner
    return decoder + cache + work + ffn + len(shape.paths) * (layer + keys)


def choose_table(shape: Shape, room: float) -> str:
    """bfloat16 where one sequence fits with it, else int8."""
    return "bfloat16" if held_bytes(shape, "ultramem", "bfloat16", 1, min(HISTORIES)) <= room else "int8"


def split(shape: Shape, table: str, points: Sequence[Point], room: float) -> tuple[list[Point], list[str]]:
    """Points at which both models fit into `room` bytes, and a line for each of the others."""
    kept, skipped = [], []
    for batch, kv in points:
        needed = max(held_bytes(shape, kind, table, batch, kv) for kind in ("ultramem", "moe"))
        if needed <= room:
            kept.append((batch, kv))
        else:
            skipped.append(f"batch {batch}, KV {kv}: {needed / 1e9:.3g} GB, {room / 1e9:.3g} GB are 80% of the memory")
    return kept, skipped


def measure(
    operators: Operators, device: str, shape: Shape, points: Sequence[Point], room: float, repeats: int = 9
) -> tuple[list[Row], list[str]]:
    """Rows of every point that fits, and what was skipped. One model's weights are held at a time."""
    table = choose_table(shape, room)
    kept, skipped = split(shape, table, points, room)
    decoder = Decoder.random(shape, device)
    ours, _ = _timings(kept, _memory_parts(Memory.random(shape, device, table), operators), decoder, device, repeats)
    if device == "cuda":
        torch.cuda.empty_cache()  # of the tables, whose pieces are too small for the experts
    peer, failed = _timings(kept, Experts.random(shape, device).products, decoder, device, repeats)
    rows = []
    for batch, kv in kept:
        product, fastest = min(peer[batch, kv].items(), key=lambda item: item[1]["step"])
        found = {"ultramem": ours[batch, kv]["ultramem"], "moe": fastest}
        counted = {kind: step_bytes_of(shape, kind, table, batch, kv) for kind in found}
        rows.append(Row(batch, kv, table, product, found, counted))
    return rows, skipped + failed


def _memory_parts(memory: Memory, operators: Operators) -> Callable[[int], dict[str, Parts]]:
    return lambda batch: {"ultramem": memory.parts(batch, operators)}


def _timings(
    points: Sequence[Point], models: Callable[[int], dict[str, Parts]], decoder: Decoder, device: str, repeats: int
) -> tuple[dict[Point, dict[str, Seconds]], list[str]]:
    """For each point and way of computing the sparse part: seconds of every part alone and of the step.

    Also a line for each way that did not run; RuntimeError where none of a point did.
    """
    found: dict[Point, dict[str, Seconds]] = {}
    failed = []
    for batch, kv in points:
        shared, found[batch, kv] = decoder.parts(batch, kv), {}
        for name, own in models(batch).items():
            try:
                parts = {part: seconds(action, device, repeats) for part, action in (shared | own).items()}
                found[batch, kv][name] = parts | {"step": seconds(in_turn(shared, own), device, repeats)}
            except RuntimeError as error:
                failed.append(f"{name}, batch {batch}, KV {kv}: {str(error).splitlines()[0]}")
        if not found[batch, kv]:
            raise RuntimeError(failed[-1])
    return found, failed


def report(rows: Sequence[Row], skipped: Sequence[str], bandwidth: float) -> None:
    """Microseconds by part, the ratios beside their byte bounds, and what was left out."""
    for kind in ("ultramem", "moe"):
        names = list(rows[0].seconds[kind]) if rows else []
        lines = [[row.batch, row.kv, kind, *(1e6 * row.seconds[kind][name] for name in names)] for row in rows]
        print_table(["batch", "KV", "us of", *names], lines)
    told = [row.told(bandwidth) for row in rows]
    lines = [[r.batch, r.kv, r.table, r.product, *t.values()] for r, t in zip(rows, told, strict=True)]
    print_table(["batch", "KV", "tables", "experts by", *(told[0] if told else [])], lines)
    for line in skipped:
        print(f"skipped: {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="libultramem_cuda.so")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU; the figures mean nothing")
    options = parser.parse_args(arguments)
    if options.dry:
        shape, device, points, room = TINY, "cpu", [(1, 64), (3, 64), (4096, 2048)], 1e8
    elif options.library is None:
        parser.error("--library: the path of libultramem_cuda.so is needed (`make plugins` builds it), or --dry")
    else:
        shape, device, points = LARGE, "cuda", [(batch, kv) for kv in HISTORIES for batch in BATCHES]
        room = SHARE * torch.cuda.mem_get_info()[1]
    operators = CudaLibrary(options.library, poison=False) if options.library else References()
    bandwidth = copy_bandwidth(device, 1 << 20 if options.dry else 1 << 31)
    rows, skipped = measure(operators, device, shape, points, room, 1 if options.dry else 9)
    report(rows, skipped, bandwidth)
    if options.json is not None:
        figures: list[dict[str, Any]] = [asdict(row) | row.told(bandwidth) for row in rows]
        result = {"shape": asdict(shape), "copy_gb_s": bandwidth / 1e9, "figures": figures, "skipped": skipped}
        options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
