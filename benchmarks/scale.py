"""The whole 151M step as its memory grows: one token a step, batch 64, KV 256, 1 M to 20 M slots, and off the disk.

    python benchmarks/scale.py [--quick] [--json] [--scratch DIR] [--threads N]

P1's 151M decoder (d 1024, 12 layers; random bfloat16 weights, float32 arithmetic: ONNX Runtime's CPU provider has no
bfloat16 products) with three memory layers of one block (E = 1: virtual slots are rows) that share one resident table
of 512 numbers a row, exported by `export --target ort` and run by ONNX Runtime with our kernels. Each size takes turns
with 1 M slots, all others are closed meanwhile; every step feeds other tokens; every page of a table has bytes of its
own. Target: at most 1.1x from first to last. The table is bfloat16 with --quick; 20 M slots would need more than 80% of
24 GiB, so the full form has int8 rows at all sizes, and bfloat16 ones beside them. Sizes beyond 80% of the memory are
skipped, and listed. Retrieval, which grows with the square root of the slots, and lookup are also measured apart, in
PyTorch bfloat16, 100 M slots among them: lookups read a table of at most 2 GB. Without --quick also a table of 40 GB
on the disk (scale_disk.py). Needs 8 GB of disk with --quick; what it wrote is deleted in the end, also if interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import workspace
from benchmarks.common import SHORT_WAIT, interleaved, machine, median, print_json, print_table
from benchmarks.memory_model import decoder, distinct_rows, memory_layer, model, write_source
from benchmarks.results import save
from benchmarks.scale_disk import from_disk
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.model.memory import MemoryLayer
from ultramem_deploy.ops.sparse_lookup import sparse_lookup
from ultramem_deploy.planning.machine import cores, total_memory
from ultramem_deploy.runtime.ort_model import open_model, read_model
from ultramem_deploy.spec import ModelSpec, TableStorage

BATCH, HISTORY, TARGET = 64, 256, 1.1
SIDES = {"1M": 1024, "4M": 2048, "20M": 4480, "100M": 10000}
QUICK, WHOLE = ("1M", "4M"), ("1M", "4M", "20M")
WIDTH = 512
CUT = 2 * 10**9
DISK_ROUNDS = 24


@click.command()
@click.option("--quick", is_flag=True, help="1 M and 4 M slots.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option(
    "--scratch",
    default=tempfile.gettempdir(),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the files lie.",
)
@click.option("--threads", default=cores, type=int, help="[default: every core]")
def main(quick: bool, as_json: bool, scratch: Path, threads: int) -> None:
    """Measure how the step's time grows with the memory."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    repeats = 9 if quick else 21
    skipped: list[str] = []
    storages: tuple[TableStorage, ...] = ("float",) if quick else ("float", "int8")
    rows = [
        row
        for storage in storages
        for row in growth(scratch, fitting(QUICK if quick else WHOLE, storage, skipped), storage, repeats, threads)
    ]
    first, last = (next(r for r in ordered if r["storage"] == storages[-1]) for ordered in (rows, rows[::-1]))
    result = {
        "ratio_last_to_first": last["ratio_to_first"],
        "slots": [first["slots"], last["slots"]],
        "rows": rows,
        "skipped": skipped,
        "apart": apart(QUICK if quick else tuple(SIDES), 5 if quick else 25, threads),
        "disk": None if quick else from_disk(scratch, spec_of, BATCH, HISTORY, threads, DISK_ROUNDS),
        "batch": BATCH,
        "history": HISTORY,
        "threads": threads,
        "machine": machine() | {"onnxruntime": ort.__version__},
    }
    result["passed"] = result["ratio_last_to_first"] <= TARGET
    show(result)
    if not quick:
        save("scale", result, rows, plot(rows))
    if as_json:
        print_json(result)


def table_bytes(side: int, storage: TableStorage = "float") -> int:
    return (2 if storage == "float" else 1) * side**2 * WIDTH


def fitting(names: tuple[str, ...], storage: TableStorage, skipped: list[str]) -> list[str]:
    """The sizes within 80% of the memory; the others are added to `skipped`."""
    large = [name for name in names if table_bytes(SIDES[name], storage) > 0.8 * total_memory()]
    skipped += [f"{name} slots, {storage}: {table_bytes(SIDES[name], storage) / 1e9:.1f} GB" for name in large]
    return [name for name in names if name not in large]


def spec_of(side: int, storage: TableStorage = "float") -> ModelSpec:
    """P1's 151M shape with skip paths round two blocks each."""
    paths = ((2, 4), (5, 7), (8, 10))
    layers = [memory_layer(side, side, 1, 16, 256, read_block=r, write_block=w) for r, w in paths]
    return model(decoder(1024, 12, 16, 2736, 50304, 512), layers, WIDTH, storage)


class Step:
    """One decoding step of a bundle over a cache that all bundles share; the step's own token is its last entry."""

    def __init__(self, bundle: Path, spec: ModelSpec, cache: dict[str, Any], threads: int) -> None:
        opened = open_model(bundle, read_model(bundle), spec.decoder, threads=threads, tables="resident")
        self.session, self.binding = opened.session, opened.session.io_binding()
        self.vocab, self.rng = spec.decoder.vocab_size, np.random.default_rng(0)
        shape = (BATCH, spec.decoder.num_kv_heads, HISTORY, spec.decoder.head_dim)
        for entry in self.session.get_inputs():
            if entry.name.startswith("past_key_values."):
                if entry.name not in cache:
                    held = self.rng.uniform(-0.1, 0.1, shape).astype(np.float32)
                    cache[entry.name] = (held, ort.OrtValue.ortvalue_from_numpy(held))
                self.binding.bind_ortvalue_input(entry.name, cache[entry.name][1])
                self.binding.bind_ortvalue_output(
                    entry.name.replace("past_key_values", "present"), cache[entry.name][1]
                )
        self.binding.bind_cpu_input("attention_mask", np.ones((BATCH, HISTORY), np.int64))
        self.binding.bind_output("logits", "cpu")

    def __call__(self) -> None:
        self.binding.bind_cpu_input("input_ids", self.rng.integers(0, self.vocab, (BATCH, 1)))
        self.session.run_with_iobinding(self.binding)


def growth(scratch: Path, names: list[str], storage: TableStorage, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Median milliseconds of a step at each size, in turn with the first, and their ratio."""
    needed = sum(table_bytes(SIDES[name], storage) for name in names) + 2 * 10**9
    cache: dict[str, Any] = {}

    def opened(folder: Path, name: str) -> Step:
        return Step(exported(folder, name, storage), spec_of(SIDES[name], storage), cache, threads)

    with workspace(scratch, needed, "scale") as folder:
        first = opened(folder, names[0])
        rows = []
        for name in names[1:]:
            other = opened(folder, name)
            steps = {"first": first, "other": other}
            interleaved(dict(steps), 1)
            found = interleaved(dict(steps), repeats)
            if not rows:
                rows.append(_row(names[0], storage, found["first"], found["first"]))
            rows.append(_row(name, storage, found["other"], found["first"]))
            del other, steps
    return rows


def _row(name: str, storage: TableStorage, seconds: list[float], first: list[float]) -> dict[str, Any]:
    return {
        "slots": SIDES[name] ** 2,
        "storage": storage,
        "table_gb": table_bytes(SIDES[name], storage) / 1e9,
        "milliseconds": median(seconds) * 1e3,
        "tokens_per_second": BATCH / median(seconds),
        # Of each round: what else the machine does meets both alike.
        "ratio_to_first": median([own / other for own, other in zip(seconds, first, strict=True)]),
    }


def exported(folder: Path, name: str, storage: TableStorage) -> Path:
    """The bundle of this size, made where there is none yet."""
    bundle = folder / name / "bundle"
    if not bundle.exists():
        write_source(folder / name / "source", spec_of(SIDES[name], storage))
        export_onnx(folder / name / "source", bundle, target="ort")
    return bundle


@torch.inference_mode()
def apart(names: tuple[str, ...], repeats: int, threads: int) -> list[dict[str, Any]]:
    """Median milliseconds of one layer's retrieval and of its lookup, for a batch of tokens."""
    torch.set_num_threads(threads)
    hidden, rows = torch.randn(BATCH, 1024).bfloat16(), []
    table = torch.from_numpy(distinct_rows(CUT // (2 * WIDTH), WIDTH)).view(torch.bfloat16)
    for name in names:
        spec = spec_of(SIDES[name])
        layer = MemoryLayer(spec.memory[0], spec).bfloat16()
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.normal_()
        raw, _ = layer.retrieve(hidden)
        held = min(len(table), SIDES[name] ** 2)

        def look_up(raw: torch.Tensor = raw, held: int = held) -> None:
            sparse_lookup(table[:held], torch.randint(held, raw.shape[:2]), raw)

        found = interleaved({"retrieval": lambda layer=layer: layer.retrieve(hidden), "lookup": look_up}, repeats + 1)
        timed = {f"{part}_milliseconds": median(seconds[1:]) * 1e3 for part, seconds in found.items()}
        rows.append({"slots": SIDES[name] ** 2, "rows_held": held, **timed})
    return rows


def show(result: dict[str, Any]) -> None:
    columns = ("slots", "storage", "table_gb", "milliseconds", "tokens_per_second", "ratio_to_first")
    header = ["virtual slots", "rows", "table GB", "ms a step", "tokens/s", "to first"]
    print_table(header, [[row[column] for column in columns] for row in result["rows"]])
    print_table(
        ["virtual slots", "rows held", "retrieval ms", "lookup ms"], [list(r.values()) for r in result["apart"]]
    )
    print(f"last to first: {result['ratio_last_to_first']:.3f} (at most {TARGET})")
    for line in result["skipped"]:
        print(f"skipped, more than 80% of memory: {line}")
    disk = result["disk"]
    if disk is not None and "skipped" in disk:
        print(f"skipped, the table on the disk: {disk['skipped']}")
    elif disk is not None:
        print(f"a table of {disk['table_gb']:.1f} GB, {disk['memory_gb']:.1f} GB of memory:")
        parts = [disk[part] for part in ("tokens_per_second", "milliseconds", "mb_read_a_step")]
        header = ["", "tokens/s", "ms a step", "MB read from the disk"]
        print_table(header, [[name, *(part[name] for part in parts)] for name in parts[0]])


def plot(rows: list[dict[str, Any]]) -> Callable[[Any], None]:
    """Milliseconds a step by slots, a line for each kind of rows."""

    def draw(axes: Any) -> None:
        for storage in dict.fromkeys(row["storage"] for row in rows):
            own = [row for row in rows if row["storage"] == storage]
            axes.semilogx([r["slots"] for r in own], [r["milliseconds"] for r in own], marker="o", label=storage)
        axes.set(xlabel="virtual slots", ylabel=f"ms a step, batch {BATCH}, KV {HISTORY}", ylim=(0, None))
        axes.legend(title="rows")

    return draw


if __name__ == "__main__":
    if not {"OMP_WAIT_POLICY", *SHORT_WAIT} & set(os.environ):
        os.environ.update(SHORT_WAIT)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
