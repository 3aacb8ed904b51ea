"""SparseLookup against its peers and against the limit: the same rows touched with loads alone.

    python benchmarks/lookup.py            # the full grid; rows and plot under benchmarks/results/
    python benchmarks/lookup.py --quick --json

Every contender reads the same bytes on the same huge pages with the same threads; each call has new random addresses.
"torch" compares within PyTorch (ours, embedding_bag, gather-multiply-sum, the limit), "ort" within ONNX Runtime (ours,
the function body). Each runtime is measured apart: its threads spin after a call, on the cores of whatever comes next.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnx import TensorProto, helper

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, median, print_json, print_table, share_pool
from benchmarks.results import save
from benchmarks.rows import Rows, huge
from ultramem_deploy.ops import DOMAIN, sparse_lookup
from ultramem_deploy.ops.encoding import ENCODINGS, encoding_of, table_width
from ultramem_deploy.runtime.plugins import ort_library

GIB = 1 << 30
WIDTHS, SLOTS, TOKENS = (192, 384, 768, 1024, 2048), (32, 64, 128, 256), (1, 4, 16, 64, 256, 1024)
QUICK = [(width, slots, tokens) for width, slots in ((192, 32), (1024, 64), (2048, 256)) for tokens in (1, 16, 64, 256)]
AHEAD_BYTES = (2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10)
Actions = dict[str, Callable[[torch.Tensor], object]]
ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
}


@dataclass(frozen=True)
class Row:
    """One grid point: seconds a call (medians) and what follows from them."""

    dtype: str
    width: int
    slots: int
    tokens: int
    seconds: dict[str, float]

    def ratio(self, slower: str, faster: str = "ours") -> float:
        return self.seconds[slower] / self.seconds[faster]

    def gigabytes(self, name: str, row_bytes: float) -> float:
        """Table bytes a second."""
        return self.tokens * self.slots * row_bytes / self.seconds[name] / 1e9


def main() -> None:
    """Measure, print the table, save it, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small grid, within a minute")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    options = parser.parse_args()
    rows = Rows(2 * GIB if options.quick else 4 * GIB)
    budget = 1.0 if options.quick else 2.0
    quick_rows = [measure(rows, torch.bfloat16, *point, budget) for point in grid(options.quick)]
    small = {
        name: measure(rows, dtype, width, 64, 256, budget, peers=False)
        for name, dtype, width in (
            ("bfloat16", torch.bfloat16, 1024),
            ("int8", torch.int8, 1024),
            ("int4", torch.uint8, 512),
        )
    }
    result = summary(quick_rows, small) | {"machine": machine(), "huge_page_share": rows.huge_share}
    if not options.json:
        report(quick_rows, list(small.values()))
        if not options.quick:
            save("lookup", result, [asdict(row) for row in (*quick_rows, *small.values())], plot(quick_rows))
    print_json(result)


def grid(quick: bool) -> list[tuple[int, int, int]]:
    return QUICK if quick else [(w, k, t) for w in WIDTHS for k in SLOTS for t in TOKENS]


def summary(rows: list[Row], small: dict[str, Row]) -> dict[str, Any]:
    """The figures that a check reads; each is the worst of the grid."""
    large, few = [r for r in rows if r.tokens >= 64], [r for r in rows if r.tokens <= 16]
    return {
        "min_fraction_of_limit": min(r.ratio("limit") for r in large),
        "min_speedup_vs_embedding_bag": min(r.ratio("embedding_bag") for r in large),
        "min_speedup_vs_embedding_bag_below_70_percent": min(
            (r.ratio("embedding_bag") for r in large if r.ratio("limit", "embedding_bag") < 0.7), default=None
        ),
        "min_speedup_small_batch": min(r.ratio("embedding_bag") for r in few),
        "min_speedup_vs_body": min(r.ratio("ort body", "ort ours") for r in rows),
        "int8_speedup": small["bfloat16"].seconds["ours"] / small["int8"].seconds["ours"],
        "int4_speedup": small["bfloat16"].seconds["ours"] / small["int4"].seconds["ours"],
        "int8_speedup_of_limit": small["bfloat16"].seconds["limit"] / small["int8"].seconds["limit"],
        "int4_speedup_of_limit": small["bfloat16"].seconds["limit"] / small["int4"].seconds["limit"],
    }


def measure(
    memory: Rows, dtype: torch.dtype, columns: int, slots: int, tokens: int, budget: float, peers: bool = True
) -> Row:
    """Medians of every contender at one point, in turn, for about `budget` seconds."""
    table = memory.table(dtype, columns)
    scores = torch.rand(tokens, slots, 1)
    scales = None if encoding_of(table) == "float" else huge(4 * len(table)).view(torch.float32).fill_(0.01)

    def addresses() -> torch.Tensor:
        return memory.addresses(len(table), tokens, slots)

    actions: Actions = {f"touch {n}": lambda a, n=n: memory.touch(table, a, n) for n in AHEAD_BYTES}
    actions["ours"] = lambda a: sparse_lookup.sparse_lookup(table, a, scores, 1, scales)
    if peers:
        weights = scores[..., 0].to(dtype)
        actions["embedding_bag"] = lambda a: torch.nn.functional.embedding_bag(
            a, table, per_sample_weights=weights, mode="sum"
        )
        actions["gather"] = lambda a: (table[a] * weights[..., None]).sum(1)
    seconds = _medians(actions, addresses, budget)
    if peers:
        seconds |= _medians(_in_onnxruntime(table, scores), addresses, budget / 2)
    touched = [name for name in seconds if name.startswith("touch")]
    seconds["limit"] = min(seconds.pop(name) for name in touched)
    name = str(dtype).removeprefix("torch.") if scales is None else encoding_of(table)
    return Row(name, table_width(table), slots, tokens, seconds)


@torch.inference_mode()
def _medians(actions: Actions, addresses: Callable[[], torch.Tensor], budget: float) -> dict[str, float]:
    """Of each action, in turn, everyone once after each of the others."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    order, end = list(actions), time.perf_counter() + budget
    while time.perf_counter() < end or min(map(len, seconds.values())) < 4:
        for name in order:
            chosen = addresses()
            begin = time.perf_counter()
            actions[name](chosen)
            seconds[name].append(time.perf_counter() - begin)
        order.append(order.pop(0))
    return {name: median(values[1:]) for name, values in seconds.items()}


def _in_onnxruntime(table: torch.Tensor, scores: torch.Tensor) -> Actions:
    """The same table through ONNX Runtime, by its kernel and by the function body; nothing is copied."""
    fixed = {"table": _value(table), "scores": _value(scores)}

    def runner(kernel: bool) -> Callable[[torch.Tensor], object]:
        share_pool(torch.get_num_threads())
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 4
        if kernel:
            options.register_custom_ops_library(str(ort_library()))
        session = onnxruntime.InferenceSession(_model(table.dtype), options, providers=["CPUExecutionProvider"])
        return lambda a: session.run_with_ort_values(None, fixed | {"addresses": _value(a)})

    return {"ort ours": runner(True), "ort body": runner(False)}


def _value(tensor: torch.Tensor) -> onnxruntime.OrtValue:
    if tensor.dtype != torch.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
        tensor.view(torch.int16).numpy(), TensorProto.BFLOAT16
    )


def _model(dtype: torch.dtype) -> bytes:
    inputs = {"table": (ELEMENTS[dtype], ["N", "D"]), "addresses": (TensorProto.INT64, ["T", "K"])}
    inputs["scores"] = (TensorProto.FLOAT, ["T", "K", 1])
    node = helper.make_node("SparseLookup", list(inputs), ["output"], domain=DOMAIN, blocks=1)
    graph = helper.make_graph(
        [node],
        "lookup",
        [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["T", "D"])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    functions = [sparse_lookup.OPERATOR.function_for(ENCODINGS[0])]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9).SerializeToString()


def report(rows: list[Row], small: list[Row]) -> None:
    """GB/s of the table's bytes and ratios."""
    header = (
        "type",
        "D",
        "K",
        "tokens",
        "limit GB/s",
        "ours GB/s",
        "of limit",
        "embedding_bag x",
        "gather x",
        "ort body x",
    )
    lines = []
    for row in (*rows, *small):
        size = row.width * {"int8": 1.0, "int4": 0.5}.get(row.dtype, 2.0)
        peers = [row.ratio(name) if name in row.seconds else "" for name in ("embedding_bag", "gather")]
        body = row.ratio("ort body", "ort ours") if "ort body" in row.seconds else ""
        shown = (row.gigabytes("limit", size), row.gigabytes("ours", size), row.ratio("limit"))
        lines.append((row.dtype, row.width, row.slots, row.tokens, *shown, *peers, body))
    print_table(header, lines)


def plot(rows: list[Row]) -> Callable[[Any], None]:
    """Fraction of the limit by batch, ours and embedding_bag."""

    def draw(axes: Any) -> None:
        for name in ("ours", "embedding_bag"):
            points = [(r.tokens, r.ratio("limit", name)) for r in rows]
            axes.plot(*zip(*points, strict=True), "o", alpha=0.5, label=name)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="tokens", ylabel="fraction of loads alone", title="SparseLookup, bfloat16 rows")
        axes.legend()

    return draw


if __name__ == "__main__":
    sys.exit(main())
