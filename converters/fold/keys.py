"""Fold Norm_k into the keys, and u and v into rank-1 keys: neither depends on the input (spec §4)."""

from __future__ import annotations

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorTask
from ultramem_deploy.planning.scratch import key_scratch
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, NormSpec

SIDES = ("row_keys", "col_keys")


def key_tasks(spec: ModelSpec, index: int, source: Checkpoint) -> list[TensorTask]:
    """The layer's keys [H, R, n, kdim] with Norm_k applied once, in float32; none where there is no norm.

    Rounding normalised keys to a narrower stored dtype would change which slots are chosen.
    """
    norm = spec.memory[index].key_norm
    return [_key_task(norm, f"memory.{index}", side, source) for side in SIDES] if norm else []


def _key_task(norm: NormSpec, prefix: str, side: str, source: Checkpoint) -> TensorTask:
    info = source.info(f"{prefix}.{side}")

    def rows(start: int, stop: int) -> np.ndarray:
        keys = source.read_rows(info.name, start, stop).astype(np.float64)
        return _normalised(norm, prefix, keys, source).astype(np.float32)

    return TensorTask(info.name, "float32", info.shape, rows, key_scratch(info.shape))


def rank_one_tasks(spec: ModelSpec, index: int, source: Checkpoint) -> list[TensorTask]:
    """Sum_r u_r k_r [H, n, kdim] a side, of normalised keys and for columns with v, in float32: what stage 1 reads."""
    return [_rank_one_task(spec.memory[index], f"memory.{index}", side, source) for side in ("row", "col")]


def _rank_one_task(layer: MemoryLayerSpec, prefix: str, side: str, source: Checkpoint) -> TensorTask:
    keys, factor = source.info(f"{prefix}.{side}_keys"), f"{prefix}.{'u' if side == 'row' else 'v'}"
    heads, rank, count, width = keys.shape

    def rows(start: int, stop: int) -> np.ndarray:
        wide = source.read_rows(keys.name, start, stop).astype(np.float64)
        if layer.key_norm:
            wide = _normalised(layer.key_norm, prefix, wide, source)
        narrow: np.ndarray = np.einsum("hr,hrnd->hnd", source.read_rows(factor, start, stop).astype(np.float64), wide)
        return narrow.astype(np.float32)

    shape = (heads, count, width)
    return TensorTask(f"{prefix}.{side}_rank_one", "float32", shape, rows, (rank + 1) * key_scratch(shape))


def _normalised(norm: NormSpec, prefix: str, keys: np.ndarray, source: Checkpoint) -> np.ndarray:
    """Norm_k(keys) over the last axis, in float64; `keys` is changed."""
    if norm.kind == "layer":
        keys -= keys.mean(-1, keepdims=True)
    keys /= np.sqrt((keys**2).mean(-1, keepdims=True) + norm.eps)
    if norm.affine:
        keys *= source.array(f"{prefix}.key_norm.weight").astype(np.float64)
    if norm.affine and norm.bias:
        keys += source.array(f"{prefix}.key_norm.bias").astype(np.float64)
    return keys
