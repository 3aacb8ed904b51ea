"""SparseLookup and TuckerTopK on a GPU beside the device's copy bandwidth and beside torch.

    python benchmarks/gpu_operators.py [--json FILE]

`lookup`: rows of 2 KiB at random from tables of 1 to 20 million rows (100 million where memory allows), as a share of
the measured copy bandwidth, and beside torch's embedding_bag where one block and one core make them the same.
`topk`: the retrieval of P1's 1.6B model beside the PyTorch reference. Outputs are checked before they are timed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import print_table
from benchmarks.gpu_timing import copy_bandwidth, seconds
from tools.cuda_library import CudaLibrary
from ultramem_deploy.ops import tucker_topk


@dataclass(frozen=True)
class LookupFigure:
    """One table and batch. `share`: of the copy bandwidth; `against_torch`: embedding_bag's seconds over ours."""

    rows: int
    tokens: int
    megabytes_read: float
    microseconds: float
    share: float
    against_torch: float


@dataclass(frozen=True)
class TopKFigure:
    """One batch. `against_torch`: the seconds of the PyTorch reference over ours."""

    tokens: int
    microseconds: float
    against_torch: float


def lookup(
    library: CudaLibrary, device: str, rows: int, tokens: int, bandwidth: float, width: int = 1024
) -> LookupFigure:
    """A bf16 table of `rows` rows; 64 rows a token."""
    slots = 64
    table = torch.randn(4096, width, device=device).bfloat16().repeat(-(-rows // 4096), 1)[:rows]
    addresses = torch.randint(rows, (tokens, slots), device=device)
    scores = torch.randn(tokens, slots, 1, device=device).bfloat16()
    inputs = {"table": table, "addresses": addresses, "scores": scores}
    bag_scores = scores[..., 0].contiguous()

    def ours() -> torch.Tensor:
        return library.sparse_lookup(inputs, blocks=1)

    def bag() -> torch.Tensor:
        return F.embedding_bag(addresses, table, mode="sum", per_sample_weights=bag_scores)

    exact = (table[addresses[:4]].float() * scores[:4].float()).sum(1)
    torch.testing.assert_close(ours()[:4].float(), exact, rtol=1e-2, atol=5e-2)
    read = tokens * slots * width * 2
    mine, theirs = seconds(ours, device), seconds(bag, device)
    return LookupFigure(rows, tokens, read / 1e6, mine * 1e6, read / mine / bandwidth, theirs / mine)


def topk(library: CudaLibrary, device: str, tokens: int, keys: int = 3584, k: int = 42) -> TopKFigure:
    """Two heads, rank 2, two cores: P1's 1.6B model with E = 4."""
    shapes = ((tokens, 2, 2, keys), (tokens, 2, 2, keys), (2, 2), (2, 2), (2, 2, 2, 2))
    names = [port.name for port in tucker_topk.OPERATOR.inputs]
    inputs = {name: torch.randn(shape, device=device) for name, shape in zip(names, shapes, strict=True)}
    scores, _ = library.tucker_topk(inputs, k)
    expected, _ = tucker_topk.reference(*inputs.values(), k)
    torch.testing.assert_close(scores.sum(2).sort().values, expected.sum(2).sort().values, rtol=1e-4, atol=1e-4)
    mine = seconds(lambda: library.tucker_topk(inputs, k), device)
    theirs = seconds(lambda: tucker_topk.reference(*inputs.values(), k), device)
    return TopKFigure(tokens, mine * 1e6, theirs / mine)


def measure(library: CudaLibrary, device: str) -> dict[str, object]:
    """Every figure that the device's memory allows."""
    bandwidth = copy_bandwidth(device)
    free = torch.cuda.mem_get_info()[0]
    sizes = [rows for rows in (1_000_000, 4_200_000, 20_000_000, 100_000_000) if rows * 2048 * 2.1 < free]
    lookups = []
    for rows in sizes:
        lookups += [lookup(library, device, rows, tokens, bandwidth) for tokens in (1, 64, 512, 2048, 4096)]
        torch.cuda.empty_cache()
    topks = [topk(library, device, tokens) for tokens in (1, 16, 64, 512, 4096)]
    return {
        "copy_gb_s": bandwidth / 1e9,
        "lookup": [asdict(figure) for figure in lookups],
        "topk": [asdict(figure) for figure in topks],
    }


def main() -> None:
    """Prints the tables and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="libultramem_cuda.so")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(CudaLibrary(arguments.library), "cuda")
    print(f"copy: {result['copy_gb_s']:.0f} GB/s")
    for name in ("lookup", "topk"):
        figures = result[name]
        print_table(list(figures[0]), [list(figure.values()) for figure in figures])  # type: ignore[index]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
