"""Expand-folds one memory layer of P1's 151M model: 4.84 million virtual values, 19.8 GB in bfloat16.

    python benchmarks/big_fold.py [--quick] [--budget 2GiB] [--jobs N] [--directory DIR] [--json]

Targets: peak RSS under the budget + 500 MB; bytes of table a second at least 0.7 of the slower of plain copying (page
cache and fsync) and of the same multiplications alone. Needs 42 GB of disk, --quick 1 GB; the last line is JSON with
--json.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.big import big_options, copy_seconds, judged, report, run_alone, workspace
from ultramem_deploy.checkpoint import Stage, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.planning.machine import default_jobs
from ultramem_deploy.planning.scratch import TILE
from ultramem_deploy.spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, RopeSpec, TableSpec
from ultramem_deploy.units import parse_bytes


@big_options
def main(quick: bool, budget: str, jobs: int | None, directory: Path, as_json: bool) -> None:
    """Measure `fold --mode expand`."""
    spec = _model(160 if quick else 1100)
    layer = spec.memory[0]
    table = layer.virtual_slots * layer.cores * spec.decoder.hidden_size * 2
    with workspace(directory, 2 * table + spec.tables["layer0"].rows * 1024 + 10**9, "big-fold") as folder:
        _write_source(folder / "source", spec)
        report(_measure(folder, spec, table, parse_bytes(budget, "--budget"), jobs), as_json)


def _measure(folder: Path, spec: ModelSpec, table: int, budget: int, jobs: int | None) -> dict[str, Any]:
    threads = jobs or default_jobs()
    # Before and after: other processes come and go.
    gemm = [_gemm_seconds(spec, threads)]
    found = run_alone(
        "fold", src=folder / "source", out=folder / "out", mode="expand", memory_budget=budget, jobs=threads
    )
    gemm.append(_gemm_seconds(spec, threads))
    files = [file for file in (folder / "out").glob("*.safetensors") if file.stat().st_size > table]
    others = {"gemm": sum(gemm) / len(gemm), "copy": copy_seconds(files, folder)}
    shape = {"virtual_values": spec.memory[0].virtual_slots, "jobs": threads}
    return shape | judged(found, budget, table, others)


def _model(knum: int) -> ModelSpec:
    """One memory layer of the 151M model's shape (E = 4, two heads) on a decoder that is as small as it can be."""
    norm = NormSpec("rms", 1e-5)
    decoder = DecoderSpec(
        hidden_size=1024, intermediate_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16,
        vocab_size=64, max_positions=64, norm=norm, rope=RopeSpec(10000.0), tie_embeddings=True,
    )  # fmt: skip
    layer = MemoryLayerSpec(
        kind="ultramem_v1", read_block=0, write_block=0, heads=2, top_m=16, row_keys=2 * knum, col_keys=2 * knum,
        key_width=256, table="layer0", slots=knum**2, query_norm=norm, key_norm=norm, blocks=4, shuffle=True,
    )  # fmt: skip
    return ModelSpec(decoder, (layer,), {"layer0": TableSpec(knum**2, 512)})


def _write_source(directory: Path, spec: ModelSpec) -> None:
    """A canonical bfloat16 checkpoint of random numbers."""
    tasks = [_random(name, tensor.shape) for name, tensor in tensor_layout(spec).items()]
    with Stage(directory, "random", SourceRecord("random", "file", {}, "0"), {}) as stage:
        stage.write_tensors("decoder", [task for task in tasks if not task.name.startswith("tables.")])
        stage.write_tensors("tables", [task for task in tasks if task.name.startswith("tables.")])
        stage.write_json("config.json", spec.to_config())


def _random(name: str, shape: tuple[int, ...]) -> TensorTask:
    if name.endswith(".shuffle"):
        return TensorTask.of(name, np.random.default_rng(0).permutation(shape[0]))

    def rows(start: int, stop: int) -> np.ndarray[Any, Any]:
        values = np.random.default_rng(start).random((stop - start, *shape[1:]), dtype=np.float32)
        return (values - np.float32(0.5)).astype(numpy_dtype("bfloat16"))

    return TensorTask(name, "bfloat16", shape, rows)


def _gemm_seconds(spec: ModelSpec, jobs: int) -> float:
    """Seconds of the fold's products alone, float64, as many threads, one core each; a sample of them scaled up."""
    layer, hidden = spec.memory[0], spec.decoder.hidden_size
    part = spec.tables[layer.table].value_width // layer.cores
    total = layer.virtual_slots // TILE * layer.cores
    sample = min(total, 8192)
    rng = np.random.default_rng(0)
    values, weight = rng.standard_normal((TILE, part)), rng.standard_normal((part, hidden))
    product = [np.empty((TILE, hidden)) for _ in range(jobs)]

    def multiply(job: int) -> None:
        for _ in range(sample // jobs):
            np.matmul(values, weight, out=product[job])

    with threadpool_limits(1), ThreadPoolExecutor(jobs) as pool:
        start = time.perf_counter()
        list(pool.map(multiply, range(jobs)))
        seconds = time.perf_counter() - start
    return seconds * total / (sample // jobs * jobs)


if __name__ == "__main__":
    main()
