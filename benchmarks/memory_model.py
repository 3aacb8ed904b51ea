"""Random checkpoints, bfloat16 or with quantised tables, of a paper's shape; no two pages of a table are alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Stage, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.layout import TensorSpec, tensor_layout
from ultramem_deploy.spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, RopeSpec, TableSpec, TableStorage

NORM = NormSpec("rms", 1e-5)
SCALE = 4e-4
_PAGE = 2048  # of 16 bits: 4 KiB
_BLOCK = np.random.default_rng(0).uniform(-0.05, 0.05, 1 << 23).astype(np.float32).astype(numpy_dtype("bfloat16"))


def decoder(hidden: int, layers: int, heads: int, inner: int, vocab: int, positions: int) -> DecoderSpec:
    """A Llama-like decoder with tied embeddings and as many key-value heads as heads."""
    return DecoderSpec(
        hidden_size=hidden, intermediate_size=inner, num_layers=layers, num_heads=heads, num_kv_heads=heads,
        head_dim=hidden // heads, vocab_size=vocab, max_positions=positions, norm=NORM, rope=RopeSpec(10000.0),
        tie_embeddings=True,
    )  # fmt: skip


def memory_layer(
    row_keys: int, col_keys: int, blocks: int, top_m: int, key_width: int, **other: Any
) -> MemoryLayerSpec:
    """A layer of P1 (two heads, rank 2, two cores) that reads all of the table "t", without a shuffle."""
    base: dict[str, Any] = {"read_block": 0, "write_block": 0, "table": "t"}
    return MemoryLayerSpec(
        kind="ultramem_v1", heads=2, top_m=top_m, row_keys=row_keys, col_keys=col_keys, key_width=key_width,
        slots=row_keys * col_keys // blocks, query_norm=NORM, blocks=blocks, **(base | other),
    )  # fmt: skip


def model(
    d: DecoderSpec, layers: list[MemoryLayerSpec], value_width: int, storage: TableStorage = "float"
) -> ModelSpec:
    """A model whose memory layers share one table."""
    return ModelSpec(d, tuple(layers), {"t": TableSpec(layers[0].slots, value_width, storage=storage)})


def write_source(directory: Path, spec: ModelSpec) -> None:
    """A canonical checkpoint; norms are 1, scales of a quantised table `SCALE`."""
    layout = tensor_layout(spec)
    with Stage(directory, "random", SourceRecord("random", "file", {}, "0"), {}) as stage:
        for group in ("tables.", ""):
            names = [name for name in layout if name.startswith("tables.") == bool(group)]
            stage.write_tensors(group.strip(".") or "decoder", [_task(name, layout[name]) for name in names])
        stage.write_json("config.json", spec.to_config())


def _task(name: str, tensor: TensorSpec) -> TensorTask:
    dtype = tensor.dtype or "bfloat16"

    def rows(start: int, stop: int) -> np.ndarray[Any, Any]:
        shape = (stop - start, *tensor.shape[1:])
        if name.endswith(("norm.weight", "_scales")):
            return np.full(shape, 1.0 if dtype == "bfloat16" else SCALE).astype(numpy_dtype(dtype))
        item = numpy_dtype(dtype).itemsize
        drawn = np.resize(_BLOCK.view(np.uint16), math.prod(shape) * item // 2)
        if tensor.role == "table":
            number_pages(drawn, start * math.prod(tensor.shape[1:]) * item // 2)
        return drawn.view(numpy_dtype(dtype)).reshape(shape)

    return TensorTask(name, dtype, tensor.shape, rows, scratch=2 * _BLOCK.nbytes)


def distinct_rows(rows: int, width: int) -> np.ndarray[Any, Any]:
    """[rows, width] of 16 bits, random small bfloat16 numbers, no two pages alike."""
    drawn = np.resize(_BLOCK.view(np.uint16), rows * width)
    number_pages(drawn, 0)
    return drawn.reshape(rows, width)


def number_pages(halves: np.ndarray[Any, Any], start: int) -> None:
    """Mark every stretch of 4 KiB with its number, in four small bfloat16 numbers; `start`: the first half's place."""
    first = -(-start // _PAGE)
    whole = halves[first * _PAGE - start :]
    pages = whole[: len(whole) // _PAGE * _PAGE].reshape(-1, _PAGE)
    numbers = first + np.arange(len(pages))
    for digit in range(4):
        pages[:, digit] = 0x3C00 + (numbers >> 7 * digit) % 128
