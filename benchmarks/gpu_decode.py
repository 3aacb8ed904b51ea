"""The sparse part of a decode step of P1's 1.6B model on a GPU, beside its byte bound and a mixture of experts.

    python benchmarks/gpu_decode.py --library libultramem_cuda.so [--json FILE]

Six memory layers (42 values for each of two heads, E = 4, 1792² slots of 1024 numbers, bf16: 39 GB): retrieval and
lookup from key scores on, under one CUDA graph. The byte bound is what a step must read (rows, key scores) at the
measured copy bandwidth. The mixture of experts is P1's partner, 2 of 34 experts in every of 32 layers, by torch's
grouped_mm with the routing made beforehand, which favours it. Dense layers and attention are in neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import print_table
from benchmarks.gpu_timing import copy_bandwidth, seconds
from tools.cuda_library import CudaLibrary


@dataclass(frozen=True)
class Shape:
    """A model's sparse part; the defaults are P1's 1.6B (dimensions of spec and paper)."""

    hidden: int = 2048
    layers: int = 32
    memory_layers: int = 6
    side: int = 1792  # physical slots are side²
    keys: int = 3584  # virtual keys a side
    width: int = 1024
    k: int = 42
    heads: int = 2
    blocks: int = 4
    experts: int = 34
    active: int = 2
    expert_width: int = 2048


@dataclass(frozen=True)
class Figure:
    """One batch; `bound_share`: byte bound over measured; `against_moe`: the experts' seconds over ours."""

    batch: int
    microseconds: float
    bound_share: float
    against_moe: float


def memory_step(library: CudaLibrary, device: str, shape: Shape, batch: int) -> tuple[Callable[[], object], int]:
    """The step as an action, and the bytes that it must read."""
    rows, heads = shape.side**2, shape.heads
    tables = [torch.zeros(rows, shape.width, dtype=torch.bfloat16, device=device) for _ in range(shape.memory_layers)]
    scores = torch.randn(2, batch, heads, 2, shape.keys, device=device)
    small = {"u": torch.ones(heads, 2, device=device), "v": torch.ones(heads, 2, device=device)}
    inputs = {
        "row_scores": scores[0],
        "col_scores": scores[1],
        **small,
        "core": torch.randn(2, heads, 2, 2, device=device),
    }

    def step() -> None:
        for table in tables:
            weights, indices = library.tucker_topk(inputs, shape.k)
            library.sparse_lookup(
                {"table": table, "addresses": indices % (shape.blocks * rows), "scores": weights}, shape.blocks
            )

    row_bytes = batch * heads * shape.k * shape.width * 2
    score_bytes = 2 * batch * heads * 2 * shape.keys * 4
    return step, shape.memory_layers * (row_bytes + score_bytes)


def moe_step(device: str, shape: Shape, batch: int) -> Callable[[], object]:
    """The expert layers of one step, tokens spread over experts at random."""
    expert_shape = (shape.experts, shape.hidden, shape.expert_width)
    up, gate = (torch.zeros(expert_shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    down = torch.zeros(shape.experts, shape.expert_width, shape.hidden, dtype=torch.bfloat16, device=device)
    chosen = torch.rand(batch, shape.experts).topk(shape.active).indices.flatten()
    ends = torch.bincount(chosen, minlength=shape.experts).cumsum(0).to(torch.int32).to(device)
    x = torch.zeros(batch * shape.active, shape.hidden, dtype=torch.bfloat16, device=device)

    def step() -> None:
        for _ in range(shape.layers):
            hidden = F.silu(F.grouped_mm(x, gate, offs=ends)) * F.grouped_mm(x, up, offs=ends)
            F.grouped_mm(hidden, down, offs=ends)

    return step


def figure(library: CudaLibrary, device: str, shape: Shape, batch: int, bandwidth: float) -> Figure:
    """Measures one batch."""
    step, nbytes = memory_step(library, device, shape, batch)
    mine = seconds(step, device)
    del step
    theirs = seconds(moe_step(device, shape, batch), device)
    return Figure(batch, mine * 1e6, nbytes / bandwidth / mine, theirs / mine)


def measure(library: CudaLibrary, device: str) -> dict[str, object]:
    """Batches 1 to 4096; the tables in as many layers as 80% of the memory holds."""
    shape = Shape()
    free = 0.8 * torch.cuda.mem_get_info()[0]
    layers = min(shape.memory_layers, int(free // (shape.side**2 * shape.width * 2)))
    shape = Shape(memory_layers=layers)
    bandwidth = copy_bandwidth(device)
    figures = [figure(library, device, shape, batch, bandwidth) for batch in (1, 8, 64, 512, 4096)]
    return {"shape": asdict(shape), "figures": [asdict(f) for f in figures]}


def main() -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="libultramem_cuda.so")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(CudaLibrary(arguments.library), "cuda")
    figures = result["figures"]
    print_table(list(figures[0]), [list(f.values()) for f in figures])  # type: ignore[index]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
