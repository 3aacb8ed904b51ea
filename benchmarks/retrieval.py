"""TuckerTopK against its function body in ONNX Runtime and against PyTorch's pipeline of torch.topk.

    python benchmarks/retrieval.py            # the full grid; rows and plot under benchmarks/results/
    python benchmarks/retrieval.py --quick --json

From key scores to the best m virtual indices: rank 2, two cores, float32; "torch" compares within PyTorch (ours, the
reference), "ort" within ONNX Runtime (ours, the function body), with the same threads. A graph holds eight of the
operator on scores of their own, as a model holds several layers, in bound buffers; its time is an eighth of the run's.
Each runtime is measured apart, and both sessions share one pool: a pool's threads spin after a run, on the cores of
whatever comes next.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import interleaved, machine, median, print_json, print_table, share_pool
from benchmarks.results import save
from ultramem_deploy.ops import DOMAIN, tucker_topk
from ultramem_deploy.runtime.plugins import ort_library

KEYS, KEPT, HEADS, TOKENS = (360, 1100, 1632, 2236, 4472), (16, 32, 64, 128), (1, 2), (1, 16, 64, 256)
QUICK = [(n, m, h, t) for n, m, h in ((360, 32, 1), (1100, 16, 2), (4472, 128, 2)) for t in (1, 64)]
RANK, CORES, LAYERS = 2, 2, 8


@dataclass(frozen=True)
class Row:
    """One grid point: seconds a call (medians)."""

    keys: int
    kept: int
    heads: int
    tokens: int
    seconds: dict[str, float]

    @property
    def over_body(self) -> float:
        return self.seconds["ort body"] / self.seconds["ort ours"]

    @property
    def over_torch(self) -> float:
        return self.seconds["torch reference"] / self.seconds["torch ours"]


def main() -> None:
    """Measure, print the table, save it, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small grid, within a minute")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    options = parser.parse_args()
    points = QUICK if options.quick else [(n, m, h, t) for n in KEYS for m in KEPT for h in HEADS for t in TOKENS]
    rows = [measure(*point, repeats=9 if options.quick else 15) for point in points]
    result = {
        "min_speedup_vs_body": min(row.over_body for row in rows),
        "min_speedup_vs_torch": min(row.over_torch for row in rows),
        "machine": machine(),
    }
    if not options.json:
        report(rows)
        if not options.quick:
            save("retrieval", result, [asdict(row) for row in rows], plot(rows))
    print_json(result)


@torch.inference_mode()
def measure(keys: int, kept: int, heads: int, tokens: int, repeats: int) -> Row:
    """Medians of the four contenders, in turn, after one call each."""
    generator = torch.Generator().manual_seed(keys)
    shapes = {
        "row_scores": (tokens, heads, RANK, keys),
        "col_scores": (tokens, heads, RANK, keys),
        "u": (heads, RANK),
        "v": (heads, RANK),
        "core": (CORES, heads, RANK, RANK),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    in_torch: dict[str, Callable[[], object]] = {
        "torch ours": lambda: tucker_topk.tucker_topk(*inputs.values(), kept),
        "torch reference": lambda: tucker_topk.reference(*inputs.values(), kept),
    }
    in_ort = {
        name: _runner(_session(kept, shapes, kernel), inputs)
        for name, kernel in (("ort ours", True), ("ort body", False))
    }
    seconds = interleaved(in_torch, repeats + 1) | interleaved(in_ort, repeats + 1)
    share = {name: LAYERS if name in in_ort else 1 for name in seconds}
    medians = {name: median(values[1:]) / share[name] for name, values in seconds.items()}
    return Row(keys, kept, heads, tokens, medians)


def _runner(session: onnxruntime.InferenceSession, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    """A run of the graph, every layer on other rows of the scores; the outputs' buffers are kept."""
    binding = session.io_binding()
    for layer in range(LAYERS):
        for name, tensor in inputs.items():
            own = np.ascontiguousarray(np.roll(tensor.numpy(), layer, axis=-1) if "scores" in name else tensor.numpy())
            binding.bind_ortvalue_input(f"{name}.{layer}", onnxruntime.OrtValue.ortvalue_from_numpy(own))
    session.run_with_iobinding(_on_cpu(session, binding))
    for output, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(output.name, value)
    return lambda: session.run_with_iobinding(binding)


def _on_cpu(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> onnxruntime.IOBinding:
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return binding


def _session(kept: int, shapes: dict[str, tuple[int, ...]], kernel: bool) -> onnxruntime.InferenceSession:
    share_pool(torch.get_num_threads())
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4
    if kernel:
        options.register_custom_ops_library(str(ort_library()))
    value = helper.make_tensor_value_info
    nodes, given, made = [], [], []
    for layer in range(LAYERS):
        names, outputs = [f"{name}.{layer}" for name in shapes], [f"scores.{layer}", f"indices.{layer}"]
        nodes.append(helper.make_node("TuckerTopK", names, outputs, domain=DOMAIN, k=kept))
        given += [value(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes.values(), strict=True)]
        made += [value(outputs[0], TensorProto.FLOAT, None), value(outputs[1], TensorProto.INT64, None)]
    graph = helper.make_graph(nodes, "retrieval", given, made)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[tucker_topk.OPERATOR.function], opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def report(rows: list[Row]) -> None:
    """Microseconds a call and the two ratios."""
    names = ("torch ours", "torch reference", "ort ours", "ort body")
    lines = [
        (r.keys, r.kept, r.heads, r.tokens, *(1e6 * r.seconds[n] for n in names), r.over_torch, r.over_body)
        for r in rows
    ]
    print_table(("n", "m", "H", "tokens", *(f"{name} us" for name in names), "over torch", "over body"), lines)


def plot(rows: list[Row]) -> Callable[[Any], None]:
    """Both ratios by the number of keys."""

    def draw(axes: Any) -> None:
        axes.plot([r.keys for r in rows], [r.over_torch for r in rows], "o", alpha=0.5, label="over PyTorch")
        axes.plot([r.keys for r in rows], [r.over_body for r in rows], "x", alpha=0.5, label="over the function body")
        axes.set(xscale="log", yscale="log", xlabel="keys a side", ylabel="times faster", title="TuckerTopK, float32")
        axes.legend()

    return draw


if __name__ == "__main__":
    sys.exit(main())
