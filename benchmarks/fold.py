"""Lookup and projection of a memory layer, unfolded against expanded, by batch: where expanding stops to pay.

    python benchmarks/fold.py [--quick] [--json] [--directory DIR] [--threads N]

Unfolded, a step gathers K rows of D numbers a token and multiplies by W_o; expanded, it gathers K rows of M*d. The
crossover is the batch at which both take the same time: predicted from rates of this machine that are measured on
another table and another product (planning/steps.py), and measured on the graphs that `export` makes of both, run by
ONNX Runtime with our kernels on mapped bfloat16 tables (float32 products: its CPU provider has no bfloat16 ones).
Selection is left out: it is the same on both sides. Every page of a table has bytes of its own; the smaller table is
2 GB. Needs 7 GB of disk a shape, one at a time; three shapes, one with --quick. Target: within a factor 1.5.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import workspace
from benchmarks.common import interleaved, machine, median, print_json, print_table, share_pool
from benchmarks.memory_model import decoder, memory_layer, model, write_source
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.onnx.dialect import Ort
from ultramem_deploy.converters.onnx.graph import Graph
from ultramem_deploy.converters.onnx.memory import MemoryGraph
from ultramem_deploy.ops import DOMAIN, OPERATORS
from ultramem_deploy.planning.folds import ItemBytes, folded_items, folded_spec, row_bytes
from ultramem_deploy.planning.machine import cores, total_memory
from ultramem_deploy.planning.steps import StepRates, crossover, step_seconds
from ultramem_deploy.runtime.plugins import ort_library
from ultramem_deploy.spec import ModelSpec

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FITTED = (1, 4, 16, 64, 256)
TARGET = 1.5
SMALLEST_TABLE = 2**31
FLUSH = np.ones(64 << 20, np.float32)
"""Read before every step: in a model, other layers' weights push W_o out of the caches between two steps."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Shape:
    """d, D, E, and m of two heads."""

    hidden: int
    width: int
    blocks: int
    top_m: int

    def spec(self) -> ModelSpec:
        side = int((SMALLEST_TABLE / (2 * self.width)) ** 0.5) // 8 * 8
        layer = memory_layer(side * self.blocks, side, self.blocks, self.top_m, 64)
        return model(decoder(self.hidden, 1, 1, 16, 64, 64), [layer], self.width)

    def __str__(self) -> str:
        return f"d {self.hidden}, D {self.width}, E {self.blocks}, K {2 * self.top_m}"


SHAPES = (Shape(1024, 1024, 1, 64), Shape(1536, 1536, 1, 64), Shape(1280, 1280, 1, 64))
"""At K where the two lines cross at an angle: with more rows of D 768 and 1024 they lie within a few per cent of one
another up to batch 4, and the crossover is anywhere there; of D 2048 expanded rows are faster at every batch."""


@click.command()
@click.option("--quick", is_flag=True, help="The first shape alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where the files lie.")
@click.option("--threads", default=cores, type=int, help="Of both sides.  [default: every core]")
def main(quick: bool, as_json: bool, directory: Path, threads: int) -> None:
    """Measure where expanding stops to pay."""
    points, skipped = [], []
    for shape in SHAPES[: 1 if quick else None]:
        before, after = sides(shape)
        needed = sum(table_bytes(spec) for spec in (before, after))
        if needed > 0.8 * total_memory():
            skipped.append(str(shape))
            continue
        with workspace(directory, needed + 10**9, "fold") as folder:
            points.append(measure(folder, shape, before, after, 5 if quick else 11, threads))
    result = summary(points, skipped, threads)
    show(result)
    if not quick:
        save(result)
    if as_json:
        print_json(result)


def sides(shape: Shape) -> tuple[ModelSpec, ModelSpec]:
    """The description unfolded and expanded."""
    before = shape.spec()
    return before, folded_spec(before, ["expand"])


def table_bytes(spec: ModelSpec) -> int:
    return sum(2 * table.rows * table.value_width for table in spec.tables.values())


def measure(
    folder: Path, shape: Shape, before: ModelSpec, after: ModelSpec, repeats: int, threads: int
) -> dict[str, Any]:
    """Seconds of both at every batch, the rates of the machine, and both crossovers."""
    sessions = {}
    for name, spec in (("unfolded", before), ("expanded", after)):
        write_source(folder / name, spec)
        sessions[name] = session(folder / name, spec, threads)
        touch(sessions[name], spec)
    # Before and after: on shared machines the memory's speed changes within minutes.
    first = calibrate(folder / "expanded", after, threads, repeats)
    timings = {batch: timed(sessions, before, batch, repeats) for batch in BATCHES}
    rates = mean(first, calibrate(folder / "expanded", after, threads, repeats))
    items = ItemBytes(values=2, pre_values=0, output=4, keys=0, shuffle=0)
    own = {"unfolded": (before, items), "expanded": (after, folded_items("expand", items))}
    rows = []
    for batch, seconds in timings.items():
        predicted = {n: step_seconds(spec.memory[0], spec, held, batch, rates) for n, (spec, held) in own.items()}
        reads = {n: spec.memory[0].taken * row_bytes(spec.tables[spec.memory[0].table], held) for n, (spec, held)
                 in own.items()}  # fmt: skip
        reads["unfolded"] += 4 * shape.blocks * shape.width * shape.hidden / batch
        rows.append({"batch": batch, "seconds": seconds, "predicted_seconds": predicted, "bytes_a_token": reads})
    return {
        "shape": str(shape),
        "rows": rows,
        "rates": vars(rates),
        "predicted_crossover_batch": crossover(own["unfolded"], own["expanded"], 0, rates),
        "measured_crossover_batch": measured_crossover(rows),
    }


def session(directory: Path, spec: ModelSpec, threads: int) -> ort.InferenceSession:
    """From addresses int64 [T, K] and scores float32 [T, K, M] to the layer's output, as `export` writes it."""
    tensors = {
        name: replace(info, file=Path(info.file.name)) for name, info in Checkpoint.open(directory).tensors.items()
    }
    graph = Graph(tensors)
    layer = MemoryGraph(Ort(graph, spec.decoder.hidden_size), spec, 0)
    out = layer._project(layer._lookup("addresses", "scores"), "hidden")
    taken, wide = spec.memory[0].taken, spec.memory[0].cores
    inputs = [
        helper.make_tensor_value_info("addresses", TensorProto.INT64, ["T", taken]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["T", taken, wide]),
    ]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["T", spec.decoder.hidden_size])]
    return _opened(helper.make_graph(graph.nodes, "layer", inputs, outputs, list(graph.initializers.values())),
                   directory, threads)  # fmt: skip


def _opened(graph: Any, directory: Path, threads: int) -> ort.InferenceSession:
    opsets = [helper.make_opsetid(domain, 18 if not domain else 1) for domain in ("", DOMAIN, "com.microsoft")]
    functions = [operator.function for operator in OPERATORS if operator.name == "SparseLookup"]
    proto = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    share_pool(threads)
    options.use_per_session_threads = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory.resolve()))
    # On huge pages rows are so cheap beside float32 products that both sides draw level for good.
    options.add_session_config_entry("ultramem.tables", "mapped")
    options.register_custom_ops_library(str(ort_library()))
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def touch(one: ort.InferenceSession, spec: ModelSpec) -> None:
    """Read every row once through the session's own mapping: a first touch is a page fault, or a read from the disk."""
    layer = spec.memory[0]
    rows = np.arange(layer.virtual_slots, dtype=np.int64)
    for part in np.array_split(np.resize(rows, (-(-len(rows) // layer.taken), layer.taken)), 64):
        one.run(None, {"addresses": part, "scores": np.zeros((*part.shape, layer.cores), np.float32)})


def timed(sessions: dict[str, ort.InferenceSession], spec: ModelSpec, batch: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step of each, in turn, every step at slots of its own."""
    rng, layer = np.random.default_rng(batch), spec.memory[0]
    scores = rng.standard_normal((batch, layer.taken, layer.cores), dtype=np.float32)

    def step(one: ort.InferenceSession) -> Callable[[], Any]:
        addresses = rng.integers(0, layer.virtual_slots, (batch, layer.taken))
        return bound(one, {"addresses": addresses, "scores": scores}, spec.decoder.hidden_size)

    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(max(repeats, 64 // batch)):
        for name, one in sessions.items():
            FLUSH.sum()
            found[name] += interleaved({name: step(one)}, 1)[name]
    return {name: median(seconds) for name, seconds in found.items()}


def bound(one: ort.InferenceSession, inputs: dict[str, np.ndarray[Any, Any]], width: int) -> Callable[[], Any]:
    """A run of these inputs [T, ...] into an output [T, width] that is there already, as in a model's step."""
    binding, tokens = one.io_binding(), len(next(iter(inputs.values())))
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    output = ort.OrtValue.ortvalue_from_numpy(np.zeros((tokens, width), np.float32))
    binding.bind_ortvalue_output(one.get_outputs()[0].name, output)
    return lambda: one.run_with_iobinding(binding)


def calibrate(directory: Path, spec: ModelSpec, threads: int, repeats: int) -> StepRates:
    """Rates of random rows, of 2 KiB as an expanded core has them, and of products of a shape that no layer has."""
    layer, rng = spec.memory[0], np.random.default_rng(1)
    table = {"rows": session(directory, spec, threads)}
    touch(table["rows"], spec)
    lookups = [timed(table, spec, batch, repeats)["rows"] for batch in FITTED]
    read = layer.taken * layer.cores * spec.decoder.hidden_size * 2
    inner = 1536
    product, nothing = (_product(width, directory, threads) for width in (inner, 16))

    def seconds(one: ort.InferenceSession, width: int, batch: int) -> float:
        x, found = rng.random((batch, width), dtype=np.float32), []
        for _ in range(3 * repeats):
            FLUSH.sum()
            x.sum()  # a layer's product multiplies what the lookup has just written
            found += interleaved({"y": bound(one, {"x": x}, width)}, 1)["y"]
        return median(found)

    fixed, row = line(lookups)
    # What a run takes by itself is in the lookup's time already.
    first, last, run = seconds(product, inner, 1), seconds(product, inner, 256), seconds(nothing, 16, 1)
    token = (last - first) / 255
    return StepRates(
        lookup_bytes_per_second=read / row,
        lookup_fixed_seconds=fixed,
        linear_bytes_per_second=4 * inner**2 / (first - token - run),
        linear_flops_per_second=2 * inner**2 / token,
    )


def _product(inner: int, directory: Path, threads: int) -> ort.InferenceSession:
    """x [T, inner] times a matrix [inner, inner], as `export` writes W_o."""
    numbers = np.random.default_rng(1).random(inner**2, dtype=np.float32)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [inner, inner], numbers)
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1)
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", inner])] for name in "xy"]
    return _opened(helper.make_graph([node], "product", *ports, [weight]), directory, threads)


def line(seconds: list[float]) -> tuple[float, float]:
    """What a lookup at the batches `FITTED` takes, and what each token more: least squares of relative errors."""
    designs = np.array([[1, batch] for batch in FITTED]) / np.array(seconds)[:, None]
    (fixed, each), *_ = np.linalg.lstsq(designs, np.ones(len(seconds)), rcond=None)
    return max(float(fixed), 1e-9), float(each)


def mean(first: StepRates, second: StepRates) -> StepRates:
    return StepRates(**{name: (rate + vars(second)[name]) / 2 for name, rate in vars(first).items()})


def measured_crossover(rows: list[dict[str, Any]]) -> float | None:
    """The batch at which expanded / unfolded passes 1, between the batches of the grid on a logarithmic scale."""
    ratios = [row["seconds"]["expanded"] / row["seconds"]["unfolded"] for row in rows]
    for row, following, low, high in zip(rows, rows[1:], ratios, ratios[1:], strict=False):
        if low <= 1 < high:
            part = np.log(1 / low) / np.log(high / low)
            return float(row["batch"] * (following["batch"] / row["batch"]) ** part)
    return None if ratios[0] <= 1 else float(rows[0]["batch"])


def summary(points: list[dict[str, Any]], skipped: list[str], threads: int) -> dict[str, Any]:
    """The first shape's crossovers, every shape's ratio of predicted to measured, the raw rows, the machine."""
    for point in points:
        both = point["predicted_crossover_batch"], point["measured_crossover_batch"]
        point["factor"] = max(both[0] / both[1], both[1] / both[0]) if all(both) else None
    factors = [point["factor"] for point in points]
    first = points[0] if points else {}
    return {
        "predicted_crossover_batch": first.get("predicted_crossover_batch"),
        "measured_crossover_batch": first.get("measured_crossover_batch"),
        "passed": bool(factors) and all(factor is not None and factor <= TARGET for factor in factors),
        "points": points,
        "skipped": skipped,
        "threads": threads,
        "machine": machine() | {"onnxruntime": ort.__version__},
    }


def show(result: dict[str, Any]) -> None:
    for point in result["points"]:
        print(f"{point['shape']}: expanding pays below batch {point['measured_crossover_batch']} (measured), "
              f"{point['predicted_crossover_batch']} (predicted)")  # fmt: skip
        names = ("unfolded", "expanded")
        header = ["batch", *(f"{n} us/token" for n in names), "expanded/unfolded", *(f"predicted {n}" for n in names)]
        rows = [
            [row["batch"], *(row["seconds"][n] / row["batch"] * 1e6 for n in names),
             row["seconds"]["expanded"] / row["seconds"]["unfolded"],
             *(row["predicted_seconds"][n] / row["batch"] * 1e6 for n in names)]
            for row in point["rows"]
        ]  # fmt: skip
        print_table(header, rows)
    for shape in result["skipped"]:
        print(f"skipped, more than 80% of memory: {shape}")


def save(result: dict[str, Any]) -> None:
    """The rows as JSON and the times as a plot, under benchmarks/results/."""
    import json

    from matplotlib.figure import Figure

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fold.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(5 * len(result["points"]), 4), layout="constrained")
    for axis, point in zip(figure.subplots(1, len(result["points"]), squeeze=False)[0], result["points"], strict=True):
        for name in ("unfolded", "expanded"):
            batches = [row["batch"] for row in point["rows"]]
            axis.loglog(batches, [row["seconds"][name] / row["batch"] * 1e6 for row in point["rows"]], label=name)
        axis.set(title=point["shape"], xlabel="tokens a step", ylabel="microseconds a token")
        axis.legend()
    figure.savefig(RESULTS / "fold.png", dpi=120)


if __name__ == "__main__":
    main()
