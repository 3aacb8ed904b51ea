"""The dense decoder's tensors, from the official fused ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ultramem_deploy.layout import block_norm_names, decoder_shapes
from ultramem_deploy.official.description import decoder_spec
from ultramem_deploy.official.layout import HEAD
from ultramem_deploy.official.model import Official

from ..base import SourceTensor
from ..views import constant, rows_of

Tensors = Mapping[str, SourceTensor]


def decoder_tensors(model: Official, tensors: Tensors, warn: Callable[[str], None]) -> dict[str, SourceTensor]:
    """Canonical name -> tensor, for the whole decoder; norms without weights get ones where others have weights."""
    spec = decoder_spec(model)
    result = {"model.embed_tokens.weight": tensors["wte.weight"]}
    result |= _renamed(tensors, "ln_f", "model.norm")
    for index in range(model.layers):
        result |= _block(model, tensors, f"blocks.{index}.", f"model.layers.{index}.")
    if not model.tied:
        result |= _renamed(tensors, HEAD, "lm_head")
    shapes = decoder_shapes(spec)
    dtype = result["model.embed_tokens.weight"].dtype
    bare = sorted(set(shapes) - set(result))
    if bare:
        warn(
            f"{len(bare)} norms without weights (as {bare[0]}) are written with ones: the model's other norms have some"
        )
    fill = {name: constant(name, shapes[name], dtype, 0.0 if name.endswith(".bias") else 1.0) for name in bare}
    return result | fill


def _block(model: Official, tensors: Tensors, theirs: str, ours: str) -> dict[str, SourceTensor]:
    result: dict[str, SourceTensor] = {}
    attention, mlp = block_norm_names(decoder_spec(model), 0)
    names = {
        "attn_norm": attention,
        "ff_norm": mlp,
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "attn_out": "self_attn.o_proj",
        "ff_out": "mlp.down_proj",
    }
    for name, new in names.items():
        result |= _renamed(tensors, theirs + name, ours + new)
    d, kv = model.hidden, model.kv_heads * model.head_dim
    for part in ("weight", "bias"):
        fused, both = tensors.get(f"{theirs}att_proj.{part}"), tensors.get(f"{theirs}ff_proj.{part}")
        if fused is None or both is None:
            continue
        for name, start, stop in (("q", 0, d), ("k", d, d + kv), ("v", d + kv, d + 2 * kv)):
            result[f"{ours}self_attn.{name}_proj.{part}"] = rows_of(fused, start, stop)
        half = model.mlp_width // 2
        # SwiGLU of the official code chunks as (x, gate).
        result[f"{ours}mlp.up_proj.{part}"] = rows_of(both, 0, half)
        result[f"{ours}mlp.gate_proj.{part}"] = rows_of(both, half, 2 * half)
    return result


def _renamed(tensors: Tensors, theirs: str, ours: str) -> dict[str, SourceTensor]:
    parts = ("weight", "bias")
    return {f"{ours}.{part}": tensors[f"{theirs}.{part}"] for part in parts if f"{theirs}.{part}" in tensors}
