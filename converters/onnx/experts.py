"""Experts side by side in one tensor, as com.microsoft MoE reads them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...checkpoint import Checkpoint, TensorTask
from ...errors import InputError
from ...planning.scratch import experts_scratch
from ...planning.work import stacked_experts
from ...spec import DecoderSpec


def expert_tasks(checkpoint: Checkpoint, decoder: DecoderSpec, target: str) -> list[TensorTask]:
    """Experts side by side, as MoE wants them: gate and up rows alternating [E, 2I, d], down [E, d, I].

    Raises InputError where the target has no mixture of experts, or MoE not this one.
    """
    if decoder.experts is None or not decoder.experts.layers:
        return []
    if target != "ort" or decoder.activation != "silu" or decoder.mlp_bias:
        raise InputError(
            f"target {target}: only ONNX Runtime's MoE runs a mixture of experts, with silu and without biases; export "
            "it with --target ort, or upcycle the experts into a memory first"
        )
    shapes = dict(stacked_experts(decoder))
    return [_stacked(checkpoint, name, shape) for name, shape in shapes.items()]


def _stacked(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorTask:
    prefix, _, part = name.rpartition(".")
    names: Mapping[str, tuple[str, ...]] = {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
    dtype = checkpoint.info(f"{prefix}.0.{names[part][0]}.weight").dtype

    def rows(start: int, stop: int) -> np.ndarray:
        return np.stack([_expert(checkpoint, f"{prefix}.{e}", names[part]) for e in range(start, stop)])

    return TensorTask(f"export.{name}", dtype, shape, rows, experts_scratch(shape, dtype))


def _expert(checkpoint: Checkpoint, prefix: str, parts: tuple[str, ...]) -> np.ndarray:
    found = [checkpoint.array(f"{prefix}.{part}.weight") for part in parts]
    return np.stack(found, axis=1).reshape(-1, found[0].shape[1])
