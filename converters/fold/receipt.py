"""What a fold preserved: every memory layer run before and after on the same hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import CheckFailed
from ultramem_deploy.model.loading import load_memory_layer
from ultramem_deploy.model.memory import MemoryLayer, ValueTable
from ultramem_deploy.spec import ModelSpec, TableSpec

TOKENS = 256
GATHERED_BYTES = 16 << 20
# What one rounding of the table explains, and float32 sums in another order; the output's norm averages over entries.
RELATIVE_LIMITS = {"float32": 1e-5, "float16": 2.0**-9, "bfloat16": 2.0**-7}
RELATIVE_LIMITS |= dict.fromkeys(("int8", "uint8", "float8_e4m3fn"), 1e-5)  # codes are moved, never rounded again
MIN_INDEX_AGREEMENT = 0.99


def fold_receipt(before: tuple[ModelSpec, Checkpoint], after: tuple[ModelSpec, Checkpoint]) -> dict[str, Any]:
    """Per layer the worst and the relative error of 256 random unit-variance hidden states, in float32, and overall.

    relative_error is |after - before| / |before| (Frobenius norms) over the tokens for which both choose the same
    slots: a tie may fall differently where sums run in another order. Raises CheckFailed where it is more than one
    rounding of the table to its dtype explains, or where more than 1% of the slots chosen are others.
    """
    layers = [_layer_receipt(before, after, index) for index in range(len(before[0].memory))]
    for layer in layers:
        _check(layer)
    return {
        "layers": layers,
        "max_abs_error": max(layer["max_abs_error"] for layer in layers),
        "max_relative_error": max(layer["relative_error"] for layer in layers),
        "min_index_agreement": min(layer["index_agreement"] for layer in layers),
    }


@torch.no_grad()
def _layer_receipt(
    before: tuple[ModelSpec, Checkpoint], after: tuple[ModelSpec, Checkpoint], index: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    hidden = torch.randn(TOKENS, before[0].decoder.hidden_size, generator=generator)
    (reference, indices), (folded, folded_indices) = (_run(*side, index, hidden) for side in (before, after))
    same = indices.sort(1).values == folded_indices.sort(1).values
    kept = same.all(1)
    difference, norm = (folded - reference)[kept], reference[kept].norm()
    error = float(difference.norm())
    return {
        "layer": index,
        "table_dtype": after[1].info(f"tables.{after[0].memory[index].table}.values").dtype,
        "max_abs_error": float(difference.abs().max()) if len(difference) else 0.0,
        "relative_error": error / float(norm) if norm > 0 else error,
        "output_rms": float(reference.pow(2).mean().sqrt()),
        "index_agreement": float(same.float().mean()),
    }


def _check(layer: dict[str, Any]) -> None:
    limit = RELATIVE_LIMITS.get(layer["table_dtype"], RELATIVE_LIMITS["bfloat16"])
    # Written so that a NaN fails.
    if layer["relative_error"] <= limit and layer["index_agreement"] >= MIN_INDEX_AGREEMENT:
        return
    raise CheckFailed(
        f"fold: memory layer {layer['layer']} is not preserved: relative error {layer['relative_error']:.3g} (limit "
        f"{limit:.3g} for a {layer['table_dtype']} table), index agreement {layer['index_agreement']:.4f} (limit "
        f"{MIN_INDEX_AGREEMENT}); the source's memory weights are too large or not finite: inspect them"
    )


def _run(
    spec: ModelSpec, checkpoint: Checkpoint, index: int, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [T, d] and indices [T, K] in float32; of the table only the rows taken are read."""
    layer = load_memory_layer(spec, checkpoint, index, torch.float32)
    table = spec.tables[layer.spec.table]
    row_bytes = 4 * layer.spec.taken * (table.value_width + table.pre_value_width)
    outputs, indices = [], []
    for part in torch.split(hidden, max(1, min(layer.chunk_tokens, GATHERED_BYTES // row_bytes))):
        raw, chosen = layer.retrieve(part)
        scores = layer.weights(raw, chosen)
        addresses = layer.addresses(chosen)
        rows, places = torch.unique(addresses % table.rows, return_inverse=True)
        held = _held_rows(checkpoint, layer, table, rows.numpy())
        outputs.append(layer.combine(held, part, scores, addresses // table.rows * len(rows) + places))
        indices.append(chosen)
    return torch.cat(outputs), torch.cat(indices)


def _held_rows(checkpoint: Checkpoint, layer: MemoryLayer, table: TableSpec, rows: np.ndarray) -> ValueTable:
    """A table of the given rows alone, floats in float32."""
    cores = layer.spec.cores if layer.spec.expanded else 1
    held = ValueTable(replace(table, rows=len(rows)), cores).requires_grad_(False)
    addressed = (rows[:, None] * cores + np.arange(cores)).reshape(-1)
    for name, tensor in held.state_dict().items():
        stored = f"tables.{layer.spec.table}.{name}"
        found = checkpoint.gather(stored, addressed if name == "values_scales" else rows)
        if tensor.is_floating_point() and checkpoint.info(stored).dtype != "float8_e4m3fn":
            tensor.copy_(torch.from_numpy(found.astype(np.float32)))
        else:
            tensor.view(torch.uint8).copy_(torch.from_numpy(found.view(np.uint8)))
    return held
