"""The memory layers' tensors, from the official ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ultramem_deploy.checkpoint.header import numpy_dtype
from ultramem_deploy.official.description import SHARED, kept, table_name
from ultramem_deploy.official.layout import PRE_TABLE, TABLE
from ultramem_deploy.official.model import CORES, HEADS_A_QUERY, Official
from ultramem_deploy.rank_one import rank_one

from ..base import SourceTensor
from ..views import Array, checked_indices, held, joined, mapped, reshaped, rows_of, stacked, whole

Tensors = Mapping[str, SourceTensor]
_ROUNDING = {"bfloat16": 2**-8, "float16": 2**-10}


def memory_tensors(model: Official, tensors: Tensors, warn: Callable[[str], None]) -> dict[str, SourceTensor]:
    """Canonical name -> tensor, for every kept memory layer and its table; `warn` is told of quirks."""
    result: dict[str, SourceTensor] = {}
    for number, place in enumerate(kept(model)):
        prefix = f"mem_blocks.{place.index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        found = _plus_tensors(own) if model.kind == "memory_plus" else _tucker_tensors(model, own)
        if model.kind != "memory_plus":
            found |= _factors(own, f"memory layer {place.index}", warn)
        result |= {f"memory.{number}.{name}": tensor for name, tensor in found.items()}
        if model.kind == "ultramem_v1":
            result[f"tables.{table_name(model, number)}.values"] = own["values_for_look_up"]
    if model.kind != "ultramem_v1" and kept(model):
        result[f"tables.{SHARED}.values"] = tensors[TABLE]
        if PRE_TABLE in tensors:
            result[f"tables.{SHARED}.pre_values"] = tensors[PRE_TABLE]
    return result


_SAME = {
    "query_norm.weight": "query_norm.weight",
    "query_norm.bias": "query_norm.bias",
    "output.weight": "values_proj.weight",
}
_TUCKER = {"key_norm.weight": "keys_norm.weight", "key_norm.bias": "keys_norm.bias"}
_PLUS = {"query.weight": "query_proj.weight", "output_gate.weight": "swilu_projection.weight"}
_PRE = {"pre_query.weight": "pre_values_proj.weight"}


def _taken(own: Tensors, names: Mapping[str, str]) -> dict[str, SourceTensor]:
    return {ours: own[theirs] for ours, theirs in names.items() if theirs in own}


def _plus_tensors(own: Tensors) -> dict[str, SourceTensor]:
    """Memory+: what its code computes with keys_norm is thrown away, so the weight is not needed."""
    keys = own["keys"]
    heads, _, side, width = keys.shape
    sides = [mapped(keys, (heads, 1, side, width), lambda rows, s=s: rows[:, s : s + 1]) for s in (0, 1)]  # type: ignore[misc]
    return _taken(own, _SAME | _PLUS) | {"row_keys": sides[0], "col_keys": sides[1]}


def _tucker_tensors(model: Official, own: Tensors) -> dict[str, SourceTensor]:
    heads, _, side, width, rank = own["keys"].shape

    def keys(which: int) -> SourceTensor:
        return mapped(own["keys"], (heads, rank, side, width), lambda rows: rows[:, which].transpose(0, 3, 1, 2))

    return _taken(own, _SAME | _TUCKER | _PRE) | {
        "query.weight": _query(model, own["query_proj.weight"]),
        "row_keys": keys(0),
        "col_keys": keys(1),
        "core": stacked([own[f"tucker_core.{core}"] for core in range(CORES)]),
        "shuffle": checked_indices(own["shuffle_index"], side * side),
    }


def _query(model: Official, weight: SourceTensor) -> SourceTensor:
    """Two heads share a query: one for all of them is kept once, more are written once a head."""
    size = 2 * model.kdim
    if model.mem_heads <= HEADS_A_QUERY:
        return rows_of(weight, 0, size)
    starts = [head // HEADS_A_QUERY * size for head in range(model.mem_heads)]
    return joined([rows_of(weight, start, start + size) for start in starts])


def _factors(own: Tensors, where: str, warn: Callable[[str], None]) -> dict[str, SourceTensor]:
    """u and v as saved; from the core where they are all zero, as they are before the first training step."""
    saved = {side: own[f"tucker_core_{side}"] for side in ("u", "v")}
    values = {side: whole(tensor).astype(np.float64) for side, tensor in saved.items()}
    core = sum(whole(own[f"tucker_core.{index}"]).astype(np.float64) for index in range(CORES))
    fresh = dict(zip(("u", "v"), rank_one(np.asarray(core)), strict=True))
    shape = fresh["u"].shape
    if not any(value.any() for value in values.values()):
        warn(
            f"{where}: tucker_core_u and tucker_core_v are all zero (saved before the first training step): computed"
            " from the cores, with the signs that make sum(u) positive"
        )
        return {side: held(saved[side].name, fresh[side].astype(numpy_dtype(saved[side].dtype))) for side in saved}
    lag = _distance(values, fresh, shape)
    if lag > _ROUNDING.get(saved["u"].dtype, 1e-6):
        warn(
            f"{where}: tucker_core_u and _v are kept as saved, a step behind the saved cores: they differ by {lag:.2g}"
        )
    return {side: reshaped(tensor, shape) for side, tensor in saved.items()}


def _distance(values: Mapping[str, Array], fresh: Mapping[str, Array], shape: tuple[int, ...]) -> float:
    """Largest difference between the saved factors and the cores' own, whose common sign is free."""
    ours = np.concatenate([values[side].reshape(shape) for side in ("u", "v")], -1)
    theirs = np.concatenate([fresh[side] for side in ("u", "v")], -1)
    either = np.minimum(np.abs(ours - theirs).max(-1), np.abs(ours + theirs).max(-1))
    return float(either.max())
