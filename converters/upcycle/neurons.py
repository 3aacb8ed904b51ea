"""FFN neurons as memory slots: act(<gate_n, x>) <up_n, x> down_n is a value weighted by a score and a pre-value gate.

That is UltraMemV2's memory (P2 §3.4) with the up row as the key, the gate row as the pre-value and the down column as
the value, so a neuron that is retrieved is computed exactly. <up_n, x> has either sign and top-m takes the largest
scores: two virtual blocks, one a sign, share each physical slot (`scoring` "signed" in `spec.MemoryLayerSpec`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ultramem_deploy.checkpoint import Checkpoint, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.header import itemsize
from ultramem_deploy.model import UltraMemModel
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, TableSpec

from .calibration import BlockStatistics, ffns
from .neuron_options import GATES, NeuronOptions
from .selection import (
    BlockPlan,
    error_curve,
    grid_counts,
    key_scales,
    parts,
    retrieved,
    spread_by_error,
    spread_evenly,
    within_budget,
)

_CURVE_TOKENS = 256


@dataclass(frozen=True)
class BlockCurve:
    """What a block loses on the calibration text by slots kept: relative output errors; the rest as in a plan."""

    scale: torch.Tensor
    shared: torch.Tensor
    errors: dict[int, float]


def block_curves(
    model: UltraMemModel, statistics: list[BlockStatistics], options: NeuronOptions, exact_scales: bool
) -> list[BlockCurve]:
    """Every block's curve; of `options` only `shared` and `retrieve` matter."""
    neurons = model.spec.decoder.intermediate_size
    shared_count = round(options.shared * neurons)
    counts = grid_counts(neurons, shared_count, options.retrieve)
    pairs = [(retrieved(neurons - shared_count, count, options.retrieve), count) for count in counts]
    curves = []
    for mlp, block in zip(ffns(model), statistics, strict=True):
        scale = key_scales(mlp, block, exact_scales)
        shared = block.mean_importance.topk(shared_count).indices.sort().values
        errors = error_curve(mlp, scale, shared, block.sample[:_CURVE_TOKENS], pairs)
        curves.append(BlockCurve(scale, shared, dict(zip(counts, errors, strict=True))))
    return curves


def plan_blocks(curves: list[BlockCurve], options: NeuronOptions) -> list[BlockPlan]:
    """The neurons of every block: which stay dense, which a memory holds and how many of those a token takes."""
    neurons, shared = len(curves[0].scale), len(curves[0].shared)
    chosen = _chosen([curve.errors for curve in curves], options, neurons, shared)
    return [
        _plan(block, curve.scale, curve.shared, kept, curve.errors[kept], options)
        for block, (curve, kept) in enumerate(zip(curves, chosen, strict=True))
    ]


def _chosen(curves: list[dict[int, float]], options: NeuronOptions, neurons: int, shared: int) -> list[int]:
    if options.error_budget:
        return within_budget(curves, options.error_budget)
    wanted = max(1, round(options.active * neurons) - shared)
    return (spread_by_error if options.spread == "error" else spread_evenly)(curves, wanted)


def _plan(
    block: int, scale: torch.Tensor, shared: torch.Tensor, kept: int, error: float, options: NeuronOptions
) -> BlockPlan:
    neurons = len(scale)
    slots = torch.tensor(sorted(set(range(neurons)) - set(shared.tolist())), dtype=torch.int64)
    if options.error_budget and kept == len(slots):
        # Every neuron is needed: the FFN computes them with fewer bytes than a memory of all of them.
        return BlockPlan(block, torch.arange(neurons), slots[:0], scale[:0], 0, 0, 0, 0.0)
    top_m = retrieved(len(slots), kept, options.retrieve)
    rank = parts(len(slots), top_m)
    if rank is None:
        raise ValueError(f"no key grid for {top_m} of {len(slots)} slots: counts come from grid_counts")
    return BlockPlan(block, shared, slots, scale[slots], top_m, kept, rank, error)


def neuron_spec(spec: ModelSpec, plans: list[BlockPlan]) -> ModelSpec:
    """The description with FFNs narrowed to their shared neurons and a memory in every block that has slots."""
    memories = [plan for plan in plans if len(plan.slots)]
    widths = tuple(len(plan.shared) for plan in plans)
    hidden = spec.decoder.hidden_size
    tables = {f"block{plan.block}": TableSpec(len(plan.slots), hidden, hidden) for plan in memories}
    layers = tuple(_layer(spec, plan) for plan in memories)
    decoder = replace(spec.decoder, ffn_widths=widths)
    return ModelSpec.from_config(replace(spec, decoder=decoder, memory=layers, tables=tables).to_config(), "upcycle")


def _layer(spec: ModelSpec, plan: BlockPlan) -> MemoryLayerSpec:
    return MemoryLayerSpec(
        kind="ultramem_v2",
        read_block=plan.block,
        write_block=plan.block,
        heads=1,
        top_m=plan.top_m,
        row_keys=2 * plan.rank,
        col_keys=len(plan.slots) // plan.rank,
        key_width=spec.decoder.hidden_size,
        table=f"block{plan.block}",
        slots=len(plan.slots),
        scoring="signed",
        rank=plan.rank,
        cores=1,
        blocks=2,
        sum_blocks=True,
        kept_values=plan.kept if plan.kept < plan.top_m else None,
        gate_activation=GATES[spec.decoder.activation],  # type: ignore[arg-type]
        expanded=True,
    )


def neuron_tasks(source: Checkpoint, plans: list[BlockPlan]) -> dict[str, list[TensorTask]]:
    """The new tensors in the source's dtype: keys s_n up_n, pre-values gate_n, values down_n / s_n, narrower FFNs."""
    groups: dict[str, list[TensorTask]] = {"memory": [], "tables": [], "shared": []}
    memories = [plan for plan in plans if len(plan.slots)]
    for index, plan in enumerate(memories):
        scale, slots, table = plan.scale.numpy(), plan.slots.numpy(), f"tables.block{plan.block}"
        keys = _rows(source, plan.block, "up", f"memory.{index}.col_keys", slots, scale)
        shape = (1, plan.rank, len(slots) // plan.rank, keys.shape[1])
        groups["memory"].append(_reshaped(keys, shape))
        groups["tables"].append(_rows(source, plan.block, "gate", f"{table}.pre_values", slots, np.ones(len(slots))))
        groups["tables"].append(_columns(source, plan.block, f"{table}.values", slots, 1 / scale))
        groups["shared"] += _narrowed(source, plan)
    return groups


def _name(block: int, part: str) -> str:
    return f"model.layers.{block}.mlp.{part}_proj.weight"


def _rows(source: Checkpoint, block: int, part: str, name: str, picked: np.ndarray, scale: np.ndarray) -> TensorTask:
    """Rows `picked` of a projection [N, d], each times its scale."""
    stored = _name(block, part)
    info = source.info(stored)

    def rows(start: int, stop: int) -> np.ndarray:
        return _scaled(source.array(stored)[picked[start:stop]], scale[start:stop], info.dtype)

    return TensorTask(name, info.dtype, (len(picked), info.shape[1]), rows, _scratch(len(picked), info.shape[1]))


def _columns(source: Checkpoint, block: int, name: str, picked: np.ndarray, scale: np.ndarray) -> TensorTask:
    """Columns `picked` of down [d, N] as rows, each times its scale."""
    stored = _name(block, "down")
    info = source.info(stored)

    def rows(start: int, stop: int) -> np.ndarray:
        return _scaled(source.array(stored)[:, picked[start:stop]].T, scale[start:stop], info.dtype)

    return TensorTask(name, info.dtype, (len(picked), info.shape[0]), rows, _scratch(len(picked), info.shape[0]))


def _scaled(values: np.ndarray, scale: np.ndarray, dtype: str) -> np.ndarray:
    product: np.ndarray = (values.astype(np.float64) * scale[:, None]).astype(numpy_dtype(dtype))
    return product


def _scratch(rows: int, width: int) -> int:
    return 2 * rows * width * itemsize("float64")


def _reshaped(task: TensorTask, shape: tuple[int, ...]) -> TensorTask:
    rows: Callable[[int, int], np.ndarray] = lambda start, stop: task.rows(0, task.shape[0]).reshape(shape)[start:stop]  # noqa: E731
    return TensorTask(task.name, task.dtype, shape, rows, task.scratch)


def _narrowed(source: Checkpoint, plan: BlockPlan) -> list[TensorTask]:
    """The FFN of the shared neurons alone."""
    shared, block = plan.shared.numpy(), plan.block
    if not len(shared):
        return []
    ones = np.ones(len(shared))
    tasks = [_rows(source, block, part, _name(block, part), shared, ones) for part in ("gate", "up")]
    down = _name(block, "down")
    info = source.info(down)

    def rows(start: int, stop: int) -> np.ndarray:
        return np.asarray(source.array(down)[start:stop][:, shared])

    return [*tasks, TensorTask(down, info.dtype, (info.shape[0], len(shared)), rows)]
