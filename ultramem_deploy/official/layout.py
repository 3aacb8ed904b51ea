"""Names and shapes of an official checkpoint's tensors, without the `transformer.` prefix: for reading and writing."""

from __future__ import annotations

from .model import CORES, RANK, Official

Shapes = dict[str, tuple[int, ...]]
TABLE = "full_memory_layer.values_for_look_up"
PRE_TABLE = "full_memory_layer.pre_values_for_look_up"
HEAD = "ff_out"


def official_layout(model: Official) -> Shapes:
    """Every tensor of the checkpoint, by name."""
    d = model.hidden
    shapes: Shapes = {"wte.weight": (model.embeddings, d)}
    shapes |= _norm("ln_f", d, model.affine, model.norm_bias)
    for index in range(model.layers):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in _block(model).items()}
    if not model.tied:
        shapes |= _linear(HEAD, model.embeddings, d, model.bias)
    for place in model.placements:
        shapes |= {f"mem_blocks.{place.index}.{name}": shape for name, shape in _memory(model).items()}
    return shapes | _tables(model)


def _block(model: Official) -> Shapes:
    d, head = model.hidden, model.head_dim
    shapes: Shapes = {}
    for name in ("attn_norm", "ff_norm"):
        shapes |= _norm(name, d, model.affine, model.norm_bias)
    if model.qk_norm:
        for name in ("q_norm", "k_norm"):
            shapes |= _norm(name, head, model.qk_affine, model.norm_bias)
    shapes |= _linear("att_proj", d + 2 * model.kv_heads * head, d, model.bias)
    shapes |= _linear("attn_out", d, d, model.bias)
    shapes |= _linear("ff_proj", model.mlp_width, d, model.bias)
    return shapes | _linear("ff_out", d, model.mlp_width // 2, model.bias)


def _memory(model: Official) -> Shapes:
    d, heads, side = model.hidden, model.mem_heads, model.side
    shapes: Shapes = {"query_proj.weight": (model.query_rows, d)}
    for name in ("query_norm", "keys_norm"):
        shapes |= _norm(name, model.kdim, model.qk_affine, model.norm_bias)
    if model.kind == "memory_plus":
        projections: Shapes = {"values_proj.weight": (d, d), "swilu_projection.weight": (d, d)}
        return shapes | projections | {"keys": (heads, 2, side, model.kdim)}
    expand = model.value_expand if model.kind == "ultramem_v2" else model.blocks
    shapes |= {
        "keys": (heads, 2, side, model.kdim, RANK),
        "values_proj.weight": (d, model.vdim * expand),
        "shuffle_index": (side * side,),
        "tucker_core_u": (1, heads, 1, RANK),
        "tucker_core_v": (1, heads, 1, RANK),
    }
    shapes |= {f"tucker_core.{core}": (heads, RANK, RANK) for core in range(CORES)}
    if model.kind == "ultramem_v1":
        shapes["values_for_look_up"] = (model.table_rows, model.vdim)
    elif model.pre_vdim:
        shapes["pre_values_proj.weight"] = (model.pre_vdim, d)
    return shapes


def _tables(model: Official) -> Shapes:
    """The shared tables; Memory+ has its own even without a memory layer."""
    if model.kind == "memory_plus":
        return {TABLE: (model.table_rows, model.vdim)}
    if model.kind == "ultramem_v1" or not model.placements:
        return {}
    shapes: Shapes = {TABLE: (model.table_rows, model.vdim)}
    return shapes | {PRE_TABLE: (model.table_rows, model.pre_vdim)} if model.pre_vdim else shapes


def _linear(name: str, out: int, inner: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out, inner)}
    return shapes | {f"{name}.bias": (out,)} if bias else shapes


def _norm(name: str, width: int, affine: bool, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (width,)} if affine else {}
    return shapes | {f"{name}.bias": (width,)} if affine and bias else shapes
