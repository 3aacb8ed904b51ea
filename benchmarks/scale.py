"""The whole 151M step as its memory grows: one token a step, batch 64, KV 256, 1 M to 20 M slots, and off the disk.

    python benchmarks/scale.py [--quick] [--json] [--directory DIR] [--threads N]

P1's 151M decoder (d 1024, 12 layers; random bfloat16 weights, float32 arithmetic: ONNX Runtime's CPU provider has no
bfloat16 products) with three memory layers of one block (E = 1: virtual slots are rows) that share one bfloat16 table
of 512 numbers a row, exported by `export --target ort` and run by ONNX Runtime with our kernels. Steps of all sizes
take turns; every step feeds other tokens. Every page of a table has bytes of its own. Target: at most 1.1x from first
to last. Sizes beyond 80% of memory are skipped, and listed. Retrieval, which grows with the square root of the slots,
and lookup are also measured apart, in PyTorch bfloat16, 100 M slots among them: lookups read a table of at most 2 GB.
Without --quick also a table of 1.2x the memory, evicted
first: tokens a second from the disk, cold and warm, and the bytes that were read. Needs 8 GB of disk with --quick.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import workspace
from benchmarks.common import interleaved, machine, median, print_json, print_table
from benchmarks.memory_model import decoder, memory_layer, model, write_source
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.model.memory import MemoryLayer
from ultramem_deploy.ops.sparse_lookup import sparse_lookup
from ultramem_deploy.planning.machine import cores, total_memory
from ultramem_deploy.runtime.ort_model import open_model, read_model
from ultramem_deploy.spec import ModelSpec

BATCH, HISTORY, TARGET = 64, 256, 1.1
SIDES = {"1M": 1024, "4M": 2048, "20M": 4480, "100M": 10000}
QUICK = ("1M", "4M")
WIDTH = 512
CUT = 2 * 10**9
RESULTS = Path(__file__).parent / "results"


@click.command()
@click.option("--quick", is_flag=True, help="1 M and 4 M slots.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, last line.")
@click.option("--directory", default=".", type=click.Path(exists=True, path_type=Path), help="Where the files lie.")
@click.option("--threads", default=cores, type=int, help="[default: every core]")
def main(quick: bool, as_json: bool, directory: Path, threads: int) -> None:
    """Measure how the step's time grows with the memory."""
    room = 0.8 * total_memory()
    names = QUICK if quick else tuple(SIDES)
    kept = [name for name in names if table_bytes(SIDES[name]) <= room]
    skipped = [f"{name} slots: {table_bytes(SIDES[name]) / 1e9:.1f} GB" for name in names if name not in kept]
    with workspace(directory, sum(table_bytes(SIDES[name]) for name in kept) + 2 * 10**9, "scale") as folder:
        rows = resident(folder, kept, 5 if quick else 15, threads)
    result = {
        "apart": apart(QUICK if quick else tuple(SIDES), 5 if quick else 25, threads),
        "ratio_last_to_first": rows[-1]["milliseconds"] / rows[0]["milliseconds"],
        "rows": rows,
        "skipped": skipped,
        "disk": None if quick else from_disk(directory, threads),
        "batch": BATCH,
        "history": HISTORY,
        "threads": threads,
        "machine": machine() | {"onnxruntime": ort.__version__},
    }
    result["passed"] = result["ratio_last_to_first"] <= TARGET
    show(result)
    if not quick:
        save(result)
    if as_json:
        print_json(result)


def table_bytes(side: int) -> int:
    return 2 * side**2 * WIDTH


def spec_of(side: int) -> ModelSpec:
    """P1's 151M shape with skip paths round two blocks each."""
    paths = ((2, 4), (5, 7), (8, 10))
    layers = [memory_layer(side, side, 1, 16, 256, read_block=r, write_block=w) for r, w in paths]
    return model(decoder(1024, 12, 16, 2736, 50304, 512), layers, WIDTH)


class Step:
    """One decoding step of a bundle over a cache that all bundles share; the step's own token is its last entry."""

    def __init__(self, folder: Path, side: int, cache: dict[str, Any], threads: int) -> None:
        spec = spec_of(side)
        write_source(folder / "source", spec)
        export_onnx(folder / "source", folder / "bundle", target="ort")
        opened = open_model(folder / "bundle", read_model(folder / "bundle"), spec.decoder, threads=threads)
        self.session, self.binding = opened.session, opened.session.io_binding()
        self.vocab, self.rng = spec.decoder.vocab_size, np.random.default_rng(side)
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


def resident(folder: Path, names: list[str], repeats: int, threads: int) -> list[dict[str, Any]]:
    """Median milliseconds of a step at each size, in turn."""
    cache: dict[str, Any] = {}
    steps = {}
    for name in names:
        steps[name] = Step(folder / name, SIDES[name], cache, threads)
        touch(folder / name / "bundle")
    for step in steps.values():
        step()
    found = interleaved(dict(steps), repeats)
    return [
        {
            "slots": SIDES[name] ** 2,
            "table_gb": table_bytes(SIDES[name]) / 1e9,
            "milliseconds": median(found[name]) * 1e3,
            "tokens_per_second": BATCH / median(found[name]),
        }
        for name in names
    ]


@torch.inference_mode()
def apart(names: tuple[str, ...], repeats: int, threads: int) -> list[dict[str, Any]]:
    """Median milliseconds of one layer's retrieval and of its lookup, for a batch of tokens."""
    torch.set_num_threads(threads)
    hidden, rows = torch.randn(BATCH, 1024).bfloat16(), []
    table = torch.rand(CUT // (2 * WIDTH), WIDTH, dtype=torch.bfloat16)
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


def touch(bundle: Path) -> None:
    """Read every byte once, so that a mapped table lies in memory."""
    for file in bundle.glob("*.safetensors"):
        with open(file, "rb", buffering=0) as stream:
            while stream.read(64 << 20):
                pass


def from_disk(directory: Path, threads: int, steps: int = 20) -> dict[str, Any] | str:
    """Tokens a second of a table of 1.2x the memory, evicted first; the first steps are the cold ones."""
    side = int((1.2 * total_memory() / (2 * WIDTH)) ** 0.5) // 64 * 64
    needed = table_bytes(side) + 2 * 10**9
    if shutil.disk_usage(directory).free < needed:
        return f"skipped: {needed / 1e9:.0f} GB of disk needed, {shutil.disk_usage(directory).free / 1e9:.0f} free"
    with workspace(directory, needed, "scale-disk") as folder:
        step = Step(folder, side, {}, threads)
        for file in (folder / "bundle").glob("*.safetensors"):
            with open(file, "rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = bytes_read()
        seconds = [interleaved({"step": step}, 1)["step"][0] for _ in range(steps)]
        read = bytes_read() - before
    half = steps // 2
    return {
        "table_gb": table_bytes(side) / 1e9,
        "memory_gb": total_memory() / 1e9,
        "gb_read": read / 1e9,
        "cold_tokens_per_second": BATCH / median(seconds[:half]),
        "warm_tokens_per_second": BATCH / median(seconds[half:]),
    }


def bytes_read() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def show(result: dict[str, Any]) -> None:
    rows = [[row["slots"], row["table_gb"], row["milliseconds"], row["tokens_per_second"]] for row in result["rows"]]
    print_table(["virtual slots", "table GB", "ms a step", "tokens/s"], rows)
    print_table(
        ["virtual slots", "rows held", "retrieval ms", "lookup ms"], [list(r.values()) for r in result["apart"]]
    )
    print(f"last to first: {result['ratio_last_to_first']:.3f} (at most {TARGET})")
    for line in result["skipped"]:
        print(f"skipped, more than 80% of memory: {line}")
    if result["disk"] is not None:
        print(f"from the disk: {result['disk']}")


def save(result: dict[str, Any]) -> None:
    """The rows as JSON and a plot, under benchmarks/results/."""
    from matplotlib.figure import Figure

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.semilogx([row["slots"] for row in result["rows"]], [row["milliseconds"] for row in result["rows"]], marker="o")
    axis.set(xlabel="virtual slots", ylabel=f"ms a step, batch {BATCH}, KV {HISTORY}", ylim=(0, None))
    figure.savefig(RESULTS / "scale.png", dpi=120)


if __name__ == "__main__":
    main()
