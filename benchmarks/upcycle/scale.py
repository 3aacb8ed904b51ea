"""A random mixture of experts of OLMoE-1B-7B's layer shape as a memory: time, size and error, for scale."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ultramem_deploy as um
from ultramem_deploy.checkpoint import Stage, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model import load
from ultramem_deploy.spec import DecoderSpec, ExpertsSpec, ModelSpec, NormSpec, RopeSpec, RoutingSpec

HIDDEN, HEADS, EXPERTS, WIDTH, TOP_K = 2048, 16, 64, 1024, 8


def real_shape(base: Path) -> dict[str, Any]:
    """Seconds of `upcycle`, bytes of the table, and the largest logit difference from the source, one block in bf16."""
    spec = ModelSpec(
        DecoderSpec(
            hidden_size=HIDDEN, intermediate_size=WIDTH, num_layers=1, num_heads=HEADS, num_kv_heads=HEADS,
            head_dim=HIDDEN // HEADS, vocab_size=512, max_positions=4096, norm=NormSpec("rms", 1e-5),
            rope=RopeSpec(10000.0), qk_norm="projection", experts=ExpertsSpec((0,), EXPERTS, WIDTH, RoutingSpec(TOP_K)),
        )
    )  # fmt: skip
    source = base / "real-shape"
    _write(source, spec)
    start = time.perf_counter()
    receipt = um.upcycle(source, base / "real-shape-out", method="experts")
    seconds = time.perf_counter() - start
    ids = torch.arange(32)[None]
    expected = load(source, dtype="float32")(ids)
    error = float((load(base / "real-shape-out", dtype="float32")(ids) - expected).abs().max())
    return {
        "slots": EXPERTS * WIDTH,
        "table_bytes": 2 * 3 * EXPERTS * WIDTH * HIDDEN,
        "upcycle_seconds": seconds,
        "max_abs_logit_error": error,
        "largest_logit": float(expected.abs().max()),
        "active_neurons": receipt["active_neurons"],
    }


def _write(target: Path, spec: ModelSpec) -> None:
    def task(name: str, shape: tuple[int, ...]) -> TensorTask:
        def rows(start: int, stop: int) -> np.ndarray:
            generator = np.random.default_rng([start, len(name), sum(name.encode())])
            drawn = generator.standard_normal((stop - start, *shape[1:]), dtype=np.float32)
            scaled = np.ones_like(drawn) if "norm" in name else drawn * np.float32(shape[-1] ** -0.5)
            return scaled.astype(numpy_dtype("bfloat16"))

        return TensorTask(name, "bfloat16", shape, rows)

    with Stage(target, "random", SourceRecord("random", "file", {}, "0"), {}) as stage:
        stage.write_tensors("model", [task(name, tensor.shape) for name, tensor in tensor_layout(spec).items()])
        stage.write_json("config.json", spec.to_config())
