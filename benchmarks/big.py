"""What the benchmarks of large tables share: sources, disk checks, plain copying, peak memory of another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from ultramem_deploy.checkpoint import Stage, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, RopeSpec, TableSpec

ALLOWANCE = 500_000_000
TARGET = 0.7
_BLOCK = 16 << 20
_CHILD = r"""
import json, re, sys, time
from pathlib import Path
import ultramem_deploy as um
import ultramem_deploy.converters.importers
verb, options = sys.argv[1], json.loads(sys.argv[2])
if verb == "fold":
    import ultramem_deploy.converters.fold.receipt
start = time.perf_counter()
getattr(um, verb)(**options)
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak}))
"""


def model(hidden: int, knum: int, key_width: int, value_width: int, top_m: int, layers: int) -> ModelSpec:
    """Memory layers of one of P1's shapes (E = 4, two heads) on a decoder that is as small as it can be."""
    norm = NormSpec("rms", 1e-5)
    decoder = DecoderSpec(
        hidden_size=hidden, intermediate_size=16, num_layers=layers, num_heads=1, num_kv_heads=1, head_dim=16,
        vocab_size=64, max_positions=64, norm=norm, rope=RopeSpec(10000.0), tie_embeddings=True,
    )  # fmt: skip
    memory = tuple(
        MemoryLayerSpec(
            kind="ultramem_v1", read_block=i, write_block=i, heads=2, top_m=top_m, row_keys=2 * knum,
            col_keys=2 * knum, key_width=key_width, table=f"layer{i}", slots=knum**2, query_norm=norm, key_norm=norm,
            blocks=4, shuffle=True,
        )
        for i in range(layers)
    )  # fmt: skip
    return ModelSpec(decoder, memory, {f"layer{i}": TableSpec(knum**2, value_width) for i in range(layers)})


def write_source(directory: Path, spec: ModelSpec) -> int:
    """A canonical bfloat16 checkpoint of random numbers; returns the bytes of its tables."""
    tasks = [_task(name, tensor.shape) for name, tensor in tensor_layout(spec).items()]
    with Stage(directory, "random", SourceRecord("random", "file", {}, "0"), {}) as stage:
        tables = [task for task in tasks if task.name.startswith("tables.")]
        stage.write_tensors("decoder", [task for task in tasks if not task.name.startswith("tables.")])
        stage.write_tensors("tables", tables)
        stage.write_json("config.json", spec.to_config())
    return sum(task.nbytes for task in tables)


def _task(name: str, shape: tuple[int, ...]) -> TensorTask:
    if name.endswith(".shuffle"):
        return TensorTask.of(name, np.random.default_rng(0).permutation(shape[0]))

    def rows(start: int, stop: int) -> np.ndarray[Any, Any]:
        values = np.random.default_rng(start).random((stop - start, *shape[1:]), dtype=np.float32)
        return (values - np.float32(0.5)).astype(numpy_dtype("bfloat16"))

    return TensorTask(name, "bfloat16", shape, rows)


@contextmanager
def workspace(parent: Path, needed: int, what: str) -> Iterator[Path]:
    """An empty folder below `parent`, deleted in the end; refuses by name where the disk cannot hold `needed` bytes."""
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise click.ClickException(
            f"{what}: {parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: give --directory on a"
            " larger disk, or --quick"
        )
    folder = parent / f"ultramem-{what}-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_alone(verb: str, **options: Any) -> dict[str, Any]:
    """Seconds (libraries imported before) and peak_rss_bytes of a verb in a process of its own."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    command = [sys.executable, "-c", _CHILD, verb, json.dumps(given)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise click.ClickException(f"{verb}: {result.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds of reading `source` and writing `target`, synced, block by block."""
    start = time.perf_counter()
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
        os.fsync(writer.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def report(result: dict[str, Any], as_json: bool) -> None:
    """The figures as a table, and as the last line in JSON; exit code 1 where a target is missed."""
    for name, value in result.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if as_json:
        print(json.dumps(result))
    if not result["passed"]:
        sys.exit(1)
