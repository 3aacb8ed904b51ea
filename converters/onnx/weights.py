"""Initializers that are byte ranges of the bundle's safetensors files, and the few tensors derived at export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from ...checkpoint import Checkpoint, TensorInfo, TensorTask
from ...errors import InputError
from ...model.rope import inverse_frequencies
from ...planning.scratch import key_scratch
from ...planning.work import ROPE_POSITIONS
from ...spec import DecoderSpec, ModelSpec, NormSpec
from .experts import expert_tasks

EXPORT_FILE = "model-export.safetensors"
INLINE_INTEGERS = 64  # ONNX Runtime folds small integer constants while it loads, and cannot from a file of ours

ONNX_TYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "float8_e4m3fn": TensorProto.UINT8,  # ONNX Runtime gathers no float8; our operators know it by their attribute
}


def external_tensor(info: TensorInfo, name: str, shape: Sequence[int]) -> TensorProto:
    """An initializer `name` whose data are the bytes of `info`, seen as `shape`; raises InputError for other dtypes.

    A few integers go inline.
    """
    if info.dtype not in ONNX_TYPES:
        raise InputError(f"tensor {info.name}: dtype {info.dtype} cannot be exported; expected {', '.join(ONNX_TYPES)}")
    if math.prod(shape) != math.prod(info.shape):
        raise ValueError(f"{info.name}: {list(info.shape)} cannot be seen as {list(shape)}")
    tensor = TensorProto(name=name, data_type=ONNX_TYPES[info.dtype], dims=shape)
    if info.dtype in ("int64", "int32") and math.prod(shape) <= INLINE_INTEGERS:
        tensor.raw_data = _bytes_of(info)
        return tensor
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", info.file.name), ("offset", info.offset), ("length", info.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _bytes_of(info: TensorInfo) -> bytes:
    with open(info.file, "rb") as stream:
        stream.seek(info.offset)
        return stream.read(info.nbytes)


def derived_tensors(spec: ModelSpec, checkpoint: Checkpoint, target: str) -> list[TensorTask]:
    """float32 tensors that the graph reads and the checkpoint does not hold: normalised keys, rotary caches."""
    derived = [
        _key_task(checkpoint, index, side, layer.key_norm)
        for index, layer in enumerate(spec.memory)
        for side in ("row_keys", "col_keys")
        if layer.key_norm
    ]
    if target == "ort" and grouped(spec.decoder):
        derived += [TensorTask.of(name, array) for name, array in rope_caches(spec.decoder).items()]
    return derived + expert_tasks(checkpoint, spec.decoder, target)


def grouped(decoder: DecoderSpec) -> bool:
    """Whether GroupQueryAttention takes these sizes: its rotation wants head sizes in steps of 16."""
    return decoder.head_dim % 16 == 0 and decoder.latent is None


def rope_positions(decoder: DecoderSpec) -> int:
    """Positions that the rotary caches cover."""
    return min(decoder.max_positions, ROPE_POSITIONS)


def rope_caches(decoder: DecoderSpec) -> dict[str, np.ndarray]:
    """Cosines and sines [positions, head_dim/2] for GroupQueryAttention, of each kind of positions."""
    positions = np.arange(rope_positions(decoder), dtype=np.float32)
    caches: dict[str, np.ndarray] = {}
    for name, rope in (("rope", decoder.rope), ("sliding_rope", decoder.sliding_rope)):
        if rope is not None:
            angles = positions[:, None] * inverse_frequencies(rope, decoder.head_dim)
            factor = np.float32(rope.attention_factor)
            caches |= {f"export.{name}.cos": np.cos(angles) * factor, f"export.{name}.sin": np.sin(angles) * factor}
    return caches


def _key_task(checkpoint: Checkpoint, index: int, side: str, norm: NormSpec) -> TensorTask:
    """Keys do not depend on the input, so their norm is applied once, here."""
    info = checkpoint.info(f"memory.{index}.{side}")

    def rows(start: int, stop: int) -> np.ndarray:
        return _normalised(checkpoint, index, norm, checkpoint.read_rows(info.name, start, stop).astype(np.float32))

    return TensorTask(f"export.{info.name}", "float32", info.shape, rows, key_scratch(info.shape))


def _normalised(checkpoint: Checkpoint, index: int, norm: NormSpec, keys: np.ndarray) -> np.ndarray:
    """Norm_k over the last axis of float32 keys."""
    if norm.kind == "layer":
        keys = keys - keys.mean(-1, keepdims=True)
    keys = keys / np.sqrt(np.square(keys).mean(-1, keepdims=True) + np.float32(norm.eps))
    if norm.affine:
        keys = keys * checkpoint.array(f"memory.{index}.key_norm.weight").astype(np.float32)
    if norm.affine and norm.bias:
        keys = keys + checkpoint.array(f"memory.{index}.key_norm.bias").astype(np.float32)
    return keys
