"""What the official code does that nobody would expect: reproduced, or refused by name (spec §6)."""

from __future__ import annotations

from ultramem_deploy.official.model import CORES, HEADS_A_QUERY, Official

from ..config_reader import ConfigReader


def check_config(reader: ConfigReader, model: Official) -> None:
    """Problems and warnings that follow from the configuration alone go to the reader."""
    if reader.failed:
        return
    if model.embeddings > model.vocab:
        reader.warnings.append(
            f"embedding_size {model.embeddings} exceeds vocab_size {model.vocab}: the"
            f" {model.embeddings - model.vocab} padding rows are kept, logits have {model.embeddings} columns"
        )
    if not model.placements:
        return
    _check_sizes(reader, model)
    _check_query(reader, model)
    _check_vertical(reader, model)
    for place in model.placements:
        if place.lost:
            reader.warnings.append(
                f"mem_insert_way: memory layer {place.index} ({place.read}:{place.write}) is dropped, for the official"
                f" code never adds its output: {place.lost}"
            )


def _check_sizes(reader: ConfigReader, model: Official) -> None:
    if model.kind == "ultramem_v2" and model.share_ratio > 1:
        reader.problem(f"mem_share_ratio: must be at most 1, found {model.share_ratio}")
    if model.kind == "ultramem_v2" and model.value_expand not in (1, model.key_expand**2):
        reader.problem(
            f"mem_value_expand_time: must be 1 or mem_key_expand_time squared ({model.key_expand**2}), found"
            f" {model.value_expand}"
        )
    if model.kind != "memory_plus" and model.vdim % CORES:
        reader.problem(f"mem_vdim: must be a multiple of the {CORES} Tucker cores, found {model.vdim}")
    if model.kind == "memory_plus" and model.vdim != model.hidden:
        reader.problem(f"mem_vdim: memory_plus needs d_model ({model.hidden}), found {model.vdim}")
    if model.knn > model.side:
        reader.problem(f"mem_knn: exceeds the {model.side} keys a side, found {model.knn}")


def _check_query(reader: ConfigReader, model: Official) -> None:
    """Quirk 1: which query each head reads."""
    if model.kind == "ultramem_v2" and not model.query_a_rank:
        reader.problem(
            f"mem_q_for_each_tucker_rank: false (the default) cannot run with ultramem_v2: half of the {model.kdim}"
            f" numbers of a query would meet keys of {model.kdim} (mem_kdim); a checkpoint that was trained has true"
        )
        return
    if model.kind != "memory_plus" and model.mem_heads > HEADS_A_QUERY * model.queries:
        reader.problem(
            f"mem_head: at most {HEADS_A_QUERY * model.queries} heads can run, {HEADS_A_QUERY} a query, found"
            f" {model.mem_heads}"
        )
    if model.kind != "ultramem_v2":
        return
    if model.mem_heads <= HEADS_A_QUERY:
        reader.warnings.append(
            f"mem_q_for_each_tucker_rank: both ranks share outputs 0 to {2 * model.kdim} of query_proj; the other"
            f" {2 * model.kdim} rows of every memory layer are dead weight and dropped"
        )
    else:
        reader.warnings.append(
            f"mem_q_for_each_tucker_rank: heads 0 and 1 read outputs 0 to {2 * model.kdim} of query_proj, the others"
            f" {2 * model.kdim} to {4 * model.kdim}; the rows are written once a head"
        )


def _check_vertical(reader: ConfigReader, model: Official) -> None:
    """Vertical parallel: what can have been trained, and quirk 3, the padding index."""
    if not model.vertical:
        if model.group > 1:
            reader.problem(f"mem_parallel_size: needs vertical_parallel true, found {model.group}")
        return
    if model.group == 1:
        reader.problem("mem_parallel_size: vertical_parallel needs more than 1, found 1")
        return
    if model.kind != "ultramem_v2":
        reader.problem(
            f"vertical_parallel: only ultramem_v2 splits its tables; with {model.kind} every rank trains a whole table"
            " of its own, and no single model comes of it"
        )
        return
    if model.group % CORES:
        reader.problem(f"mem_parallel_size: must be a multiple of the {CORES} Tucker cores, found {model.group}")
    for name, width in (("mem_vdim", model.vdim), ("mem_pre_vdim", model.pre_vdim)):
        if width % model.group:
            reader.problem(f"{name}: must be a multiple of mem_parallel_size ({model.group}), found {width}")
    if model.padding is not None:
        reader.warnings.append(
            f"vertical_parallel: with {model.side**2} virtual slots the official code mistakes slot {model.padding}"
            " (the number of all values, its padding index) for padding: in every memory layer that value counts as"
            " zero"
        )
