"""The canonical description of a model of the official code."""

from __future__ import annotations

from ..spec import DecoderSpec, MemoryLayerSpec, RopeSpec, TableSpec
from .model import CORES, HEADS_A_QUERY, RANK, Official
from .placement import Placement

SHARED = "shared"


def decoder_spec(model: Official) -> DecoderSpec:
    """The decoder of the canonical model."""
    return DecoderSpec(
        hidden_size=model.hidden,
        intermediate_size=model.mlp_width // 2,
        num_layers=model.layers,
        num_heads=model.heads,
        num_kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.embeddings,
        max_positions=model.positions,
        norm=model.decoder_norm,
        rope=RopeSpec(model.rope_theta),
        norm_position="post" if model.norm_after else "pre",
        qk_norm="head" if model.qk_norm else "none",
        qkv_bias=model.bias,
        attention_output_bias=model.bias,
        mlp_bias=model.bias,
        clip_qkv=model.clip_qkv,
        tie_embeddings=model.tied,
        lm_head_bias=model.bias and not model.tied,
    )


def kept(model: Official) -> list[Placement]:
    """The memory layers whose output arrives, in the order of the checkpoint."""
    return [place for place in model.placements if not place.lost]


def memory_spec(model: Official) -> tuple[tuple[MemoryLayerSpec, ...], dict[str, TableSpec]]:
    """Memory layers and tables of the canonical model."""
    layers = tuple(_layer(model, place, table_name(model, number)) for number, place in enumerate(kept(model)))
    pre = model.pre_vdim if model.kind == "ultramem_v2" else 0
    return layers, {layer.table: TableSpec(model.table_rows, model.vdim, pre) for layer in layers}


def table_name(model: Official, number: int) -> str:
    """The table of kept memory layer `number`."""
    return f"layer{number}" if model.kind == "ultramem_v1" else SHARED


def _layer(model: Official, place: Placement, table: str) -> MemoryLayerSpec:
    plus, v2 = model.kind == "memory_plus", model.kind == "ultramem_v2"
    return MemoryLayerSpec(
        kind=model.kind,  # type: ignore[arg-type]
        read_block=place.read,
        write_block=place.write,
        heads=model.mem_heads,
        top_m=model.knn,
        row_keys=model.side,
        col_keys=model.side,
        key_width=model.kdim,
        table=table,
        slots=model.window**2,
        scoring="additive" if plus else "tucker",
        rank=RANK,
        cores=1 if plus else CORES,
        query_heads=model.mem_heads if plus or model.mem_heads > HEADS_A_QUERY else 1,
        query_norm=model.memory_norm,
        key_norm=None if plus else model.memory_norm,
        score_function="softmax" if plus else "none",
        offset=place.index * model.knum**2 if v2 else 0,
        blocks=model.blocks,
        sum_blocks=v2 and model.value_expand == 1 and model.blocks > 1,
        shuffle=not plus,
        gate_activation="gelu" if v2 and model.glu_act and model.pre_vdim else "none",
        output_gate=plus,
        empty_slot=model.padding,
    )
