"""Sizes and peaks from the model description alone, before any work is done (no torch)."""

from __future__ import annotations

import math
from dataclasses import replace

from ..layout import tensor_layout
from ..spec import MemoryLayerSpec, ModelSpec

PREFILL_BUDGET = 256 << 20


def gathered_bytes(layer: MemoryLayerSpec, spec: ModelSpec) -> int:
    """Bytes a token of table rows held in float32 while a layer's lookup runs by its function body: K*(D + P)."""
    table = spec.tables[layer.table]
    return 4 * layer.taken * (table.value_width + table.pre_value_width)


def scored_bytes(layer: MemoryLayerSpec) -> int:
    """Bytes a token of float32 scores in stages 1 and 2: H*((2R + 1)*(n_row + n_col) + (M + 1)*m^2).

    Of rank-1 keys stage 1 has one score a key; of the few that it keeps, the keys are gathered: R*kdim numbers each.
    """
    # A body multiplies the key scores by u and v into a second array before it sums over the rank.
    rank = 2 if layer.scoring == "additive" else layer.rank
    kept = min(layer.top_m, layer.row_keys), min(layer.top_m, layer.col_keys)
    keys, grid = layer.row_keys + layer.col_keys, (layer.cores + 1) * kept[0] * kept[1]
    if layer.rank_one_keys:
        return 4 * layer.heads * (keys + sum(kept) * (rank * layer.key_width + 2 * rank + 1) + grid)
    return 4 * layer.heads * ((2 * rank + 1) * keys + grid)


def prefill_bytes(spec: ModelSpec, tokens: int) -> int:
    """Peak bytes that memory layers hold while `tokens` are fed at once: the widest one's, for they run in turn."""
    # A body multiplies the gathered rows by their scores into a second array before it sums: twice the rows.
    return tokens * max((2 * gathered_bytes(s, spec) + scored_bytes(s) for s in spec.memory), default=0)


def prefill_chunk(spec: ModelSpec, budget: int = PREFILL_BUDGET) -> int:
    """Tokens to feed at once so that `prefill_bytes` stays within `budget` bytes; at least 1, at most 512."""
    per_token = prefill_bytes(spec, 1)
    return max(1, min(512, budget // per_token)) if per_token else 512


def parameter_counts(spec: ModelSpec) -> dict[str, int]:
    """parameters_total, parameters_table and parameters_active of a model.

    Active: multiplied once a token, the rows read included, the embedding lookup not (a tied embedding counts once, as
    the output projection). Buffers (shuffle, u, v) and scales are not parameters.
    """
    active = 0
    # Counted as described: quantised weights and tables pack their numbers.
    floats = replace(spec, decoder=replace(spec.decoder, dense="float"))
    for tensor in tensor_layout(floats).values():
        size = math.prod(tensor.shape)
        active += size if tensor.role in ("dense", "memory") else 0
    table = sum(t.rows * (t.value_width + t.pre_value_width) for t in spec.tables.values())
    total = active + table
    if not spec.decoder.tie_embeddings:
        active -= spec.decoder.vocab_size * spec.decoder.hidden_size
    active += sum(read_numbers(layer, spec) for layer in spec.memory)
    return {"parameters_total": total, "parameters_table": table, "parameters_active": active}


def read_numbers(layer: MemoryLayerSpec, spec: ModelSpec) -> int:
    """Numbers of table rows that a token reads: pre-values of all that is taken, values of what is summed."""
    table = spec.tables[layer.table]
    return layer.taken * table.pre_value_width + layer.summed * table.value_width
