"""Dense layers of few rows: our kernel, PyTorch's product, oneDNN's own order, and the bytes' limit.

    python benchmarks/linear.py [--quick] [--json] [--threads N]

The layers of a block of P1's 151M and of P2's 227M with its memory layer, in bfloat16 and float32, as many blocks as
400 MB hold, multiplied one after another, so that none is in the first caches. "oneDNN's order" has each weight laid
out for it beforehand, a copy; our kernel and `F.linear` read the weights as they are stored. The limit is a sum over
the same bytes. Contenders take turns; medians of the time of all layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import interleaved, machine, median, print_json, print_table
from ultramem_deploy.ops import native_linear
from ultramem_deploy.planning.machine import cores

HELD, DRAWN = 400 << 20, 1 << 22
ROWS, QUICK = (1, 4, 8, 16, 32, 64, 128, 256), (1, 8, 64)
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 2**-17}
"""Relative to the largest output: two roundings that differ by a unit, or sums in another order."""
LEAST = {"fraction_of_limit": "of limit", "speedup": "times PyTorch", "speedup_vs_onednn": "times oneDNN's order"}
BLOCKS: dict[str, list[tuple[int, int]]] = {
    "151M block": [(1024, 1024)] * 4 + [(2736, 1024)] * 2 + [(1024, 2736)],
    "227M block": [(768, 768)] * 4 + [(2496, 768)] * 2 + [(768, 2496)],
    # Query, pre-query, keys of both sides, output.
    "227M memory": [(384, 768), (192, 768), (2276, 192), (2276, 192), (768, 192)],
}

Weights = list[torch.Tensor]
Way = Callable[[torch.Tensor, Any], torch.Tensor]


def layers(shapes: list[tuple[int, int]], dtype: torch.dtype) -> Weights:
    """Weights [out, in] in ±0.05 of as many blocks as `HELD` bytes hold, no two alike."""
    numbers = sum(out * width for out, width in shapes)
    held = torch.empty(max(1, HELD // (dtype.itemsize * numbers)), numbers, dtype=dtype)
    drawn = ((torch.rand(DRAWN) - 0.5) / 10).to(dtype)
    for i, part in enumerate(held.view(-1).split(DRAWN)):
        part.copy_(drawn.roll(7 * i)[: len(part)])
    sizes = [out * width for out, width in shapes]
    return [part.view(shape) for block in held for part, shape in zip(block.split(sizes), shapes, strict=True)]


def ways(held: Weights) -> dict[str, tuple[Way, list[Any]]]:
    """What multiplies x, and by what."""
    found: dict[str, tuple[Way, list[Any]]] = {
        "kernel": (lambda x, weight: native_linear.product(x, weight, None, x.dtype), held),
        "PyTorch": (F.linear, held),
    }
    if held[0].dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        packed = [pack(weight, 8) for weight in held]
        found["oneDNN's order"] = (lambda x, weight: multiply(x, weight, None, "none", [], ""), packed)
    return found


def measure(name: str, held: Weights, contenders: dict[str, tuple[Way, list[Any]]], rows: int, repeats: int) -> Any:
    """Microseconds a layer of each contender, and the kernel's speed beside the others'."""
    dtype = held[0].dtype
    inputs = {width: (torch.rand(rows, width) - 0.5).to(dtype) for width in {weight.shape[1] for weight in held}}
    xs = [inputs[weight.shape[1]] for weight in held]
    _compare(xs, contenders)
    actions: dict[str, Callable[[], Any]] = {
        way: lambda run=run, by=by: [run(x, weight) for x, weight in zip(xs, by, strict=True)]  # type: ignore[misc]
        for way, (run, by) in contenders.items()
    }
    actions["sum"] = lambda: [weight.view(torch.float32).sum() for weight in held]
    seconds = {way: median(found) for way, found in interleaved(actions, repeats).items()}
    others = {f"times {way}": seconds[way] / seconds["kernel"] for way in contenders if way != "kernel"}
    return (
        {"layers": name, "dtype": str(dtype).removeprefix("torch."), "rows": rows}
        | {f"{way} us": 1e6 * value / len(held) for way, value in seconds.items()}
        | {"GB/s": 1e-9 * sum(weight.nbytes for weight in held) / seconds["kernel"]}
        | {"of limit": seconds["sum"] / seconds["kernel"]}
        | others
    )


def _compare(xs: list[torch.Tensor], contenders: dict[str, tuple[Way, list[Any]]]) -> None:
    outputs = {name: run(xs[0], by[0]).float() for name, (run, by) in contenders.items()}
    largest, tolerance = float(outputs["PyTorch"].abs().max()), TOLERANCE[xs[0].dtype]
    for out in outputs.values():
        torch.testing.assert_close(out, outputs["PyTorch"], rtol=tolerance, atol=tolerance * largest)


@click.command()
@click.option("--quick", is_flag=True, help="1, 8 and 64 rows, within a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--threads", default=cores, type=int, help="[default: every core]")
@torch.inference_mode()
def main(quick: bool, as_json: bool, threads: int) -> None:
    """Measure dense layers of few rows."""
    torch.set_num_threads(threads)
    if native_linear.native.kernels() is None:
        raise click.ClickException("the native kernels are not there; `ultramem-deploy doctor` says why")
    rows = []
    for dtype, (name, shapes) in product(TOLERANCE, BLOCKS.items()):
        held = layers(shapes, dtype)
        contenders = ways(held)
        rows += [measure(name, held, contenders, count, 7 if quick else 15) for count in (QUICK if quick else ROWS)]
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if as_json:
        least = {f"min_{name}": min(row[of] for row in rows) for name, of in LEAST.items() if of in rows[0]}
        print_json(least | {"rows": rows, "threads": threads, "machine": machine()})


if __name__ == "__main__":
    main()
