"""Attention of one position over a cache: our kernel, two products, scaled_dot_product_attention, and the bytes' limit.

    python benchmarks/attention.py [--quick] [--json] [--threads N]

Heads of 64 numbers, 16 as in P1's 151M, or as few key-value heads as groups of four need. The limit is a sum over the
same keys and values. Layers' caches of 160 MB together are read one after another, so that none is in the processor's
caches. The kernel is compared with both others before it is timed; contenders take turns; medians.
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
from ultramem_deploy.model.attention import one_position
from ultramem_deploy.ops import native_attention
from ultramem_deploy.planning.machine import cores

HEADS, WIDTH = 16, 64
HELD, LARGEST, DRAWN = 160 << 20, 1 << 30, 1 << 22
BATCHES, PLACES, QUICK = (1, 8, 64), (64, 256, 2048), ((1, 64), (8, 64), (64, 64), (8, 2048))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Of sums of numbers below 1; the others round scores and weights to bfloat16."""
LEAST = {"fraction_of_limit": "of limit", "speedup": "times faster"}

Layers = list[tuple[torch.Tensor, torch.Tensor]]


def layers(batch: int, places: int, kv_heads: int, dtype: torch.dtype) -> Layers:
    """Keys and values [B, kv_heads, P, width] in ±0.5, no two alike."""
    shape = (2, batch, kv_heads, places, WIDTH)
    count = max(1, -(-HELD // (torch.Size(shape).numel() * dtype.itemsize)))
    held, drawn = torch.empty(count, *shape, dtype=dtype), (torch.rand(DRAWN) - 0.5).to(dtype)
    for i, part in enumerate(held.view(-1).split(DRAWN)):
        part.copy_(drawn.roll(7 * i)[: len(part)])
    return [(keys, values) for keys, values in held]


def contenders(q: torch.Tensor, held: Layers) -> dict[str, Callable[[], list[Any]]]:
    """What each does over all layers; "sum" reads the same bytes."""
    places, group = held[0][0].shape[2], HEADS // held[0][0].shape[1]

    def fused(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return F.scaled_dot_product_attention(q, k, v)[:, :, 0]

    ways: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
        "kernel": lambda k, v: native_attention.one_position(q, k, v, None, None),
        "two products": lambda k, v: one_position(q, k, v, places, None, None),
        "fused": fused,
        "sum": lambda k, v: (k.view(torch.float32).sum(), v.view(torch.float32).sum()),
    }
    return {name: lambda way=way: [way(k, v) for k, v in held] for name, way in ways.items()}  # type: ignore[misc]


def measure(batch: int, places: int, kv_heads: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Microseconds a layer of each contender, and the kernel's speed beside the others'."""
    held, q = layers(batch, places, kv_heads, dtype), (torch.rand(batch, HEADS, 1, WIDTH) - 0.5).to(dtype)
    if not native_attention.usable(q, *held[0], None):
        raise click.ClickException("the native kernels are not there; `ultramem-deploy doctor` says why")
    actions = contenders(q, held)
    ours = actions["kernel"]()[0]
    for name in ("two products", "fused"):
        torch.testing.assert_close(ours, actions[name]()[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    seconds = {name: median(found) / len(held) for name, found in interleaved(actions, repeats).items()}
    point = {"dtype": str(dtype).removeprefix("torch."), "batch": batch, "places": places, "kv heads": kv_heads}
    return (
        point
        | {f"{name} us": 1e6 * value for name, value in seconds.items()}
        | {"GB/s": 2e-9 * held[0][0].nbytes / seconds["kernel"], "of limit": seconds["sum"] / seconds["kernel"]}
        | {"times faster": min(seconds["two products"], seconds["fused"]) / seconds["kernel"]}
    )


@click.command()
@click.option("--quick", is_flag=True, help="A small grid, within a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--threads", default=cores, type=int, help="[default: every core]")
@torch.inference_mode()
def main(quick: bool, as_json: bool, threads: int) -> None:
    """Measure attention of one position."""
    torch.set_num_threads(threads)
    rows = []
    for dtype, kv_heads in product(TOLERANCE, (HEADS, HEADS // 4)):
        for batch, places in QUICK if quick else product(BATCHES, PLACES):
            if 2 * batch * kv_heads * places * WIDTH * dtype.itemsize > LARGEST:
                print(f"{dtype}, batch {batch}, {places} places, {kv_heads} key-value heads: skipped, over 1 GiB")
            else:
                rows.append(measure(batch, places, kv_heads, dtype, repeats=5 if quick else 9))
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if as_json:
        least = {f"min_{name}": min(row[of] for row in rows) for name, of in LEAST.items()}
        print_json(least | {"rows": rows, "threads": threads, "machine": machine()})


if __name__ == "__main__":
    main()
