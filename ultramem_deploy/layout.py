"""Which tensors a canonical checkpoint holds, and their shapes, from the model description alone (no torch).

The decoder's names are those that Hugging Face uses for Llama, so that an unchanged source shard is linked, not
rewritten. Memory layers are `memory.{i}.*`; value tables, which layers may share, are `tables.{name}.*`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec

Role = Literal["dense", "memory", "table", "buffer"]


@dataclass(frozen=True)
class TensorSpec:
    """Shape of a tensor and what it is: multiplied weights, table rows, or a buffer (not a parameter)."""

    shape: tuple[int, ...]
    role: Role


def tensor_layout(spec: ModelSpec) -> dict[str, TensorSpec]:
    """Every tensor that the checkpoint of `spec` must hold, by name."""
    layout = {name: TensorSpec(shape, "dense") for name, shape in decoder_shapes(spec.decoder).items()}
    for index, layer in enumerate(spec.memory):
        layout |= {f"memory.{index}.{n}": t for n, t in memory_layout(layer, spec).items()}
    for name, table in spec.tables.items():
        layout[f"tables.{name}.values"] = TensorSpec((table.rows, table.value_width), "table")
        if table.pre_value_width:
            layout[f"tables.{name}.pre_values"] = TensorSpec((table.rows, table.pre_value_width), "table")
    return layout


def decoder_shapes(d: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the dense decoder's tensors."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (d.vocab_size, d.hidden_size)}
    for i in range(d.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _block_shapes(d, i).items()}
    shapes |= _norm_shapes("model.norm", d.norm, d.hidden_size)
    if not d.tie_embeddings:
        shapes |= _linear_shapes("lm_head", d.vocab_size, d.hidden_size, d.lm_head_bias)
    return shapes


def _block_shapes(d: DecoderSpec, block: int) -> dict[str, tuple[int, ...]]:
    q_size, kv_size = d.num_heads * d.head_dim, d.num_kv_heads * d.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out in (("q", q_size), ("k", kv_size), ("v", kv_size)):
        shapes |= _linear_shapes(f"self_attn.{name}_proj", out, d.hidden_size, d.qkv_bias)
    shapes |= _linear_shapes("self_attn.o_proj", d.hidden_size, q_size, d.attention_output_bias)
    width = d.ffn_width(block)
    if width:
        for name in ("gate", "up"):
            shapes |= _linear_shapes(f"mlp.{name}_proj", width, d.hidden_size, d.mlp_bias)
        shapes |= _linear_shapes("mlp.down_proj", d.hidden_size, width, d.mlp_bias)
    attention_norm, ffn_norm = block_norm_names(d)
    shapes |= _norm_shapes(attention_norm, d.norm, d.hidden_size)
    # A norm before the FFN makes what a memory layer reads, FFN or none; one behind it has nothing to norm.
    if width or d.norm_position == "pre":
        shapes |= _norm_shapes(ffn_norm, d.norm, d.hidden_size)
    if d.qk_norm != "none":
        per_head = d.qk_norm == "head"
        shapes |= _norm_shapes("self_attn.q_norm", d.norm, d.head_dim if per_head else q_size)
        shapes |= _norm_shapes("self_attn.k_norm", d.norm, d.head_dim if per_head else kv_size)
    return shapes


def block_norm_names(d: DecoderSpec) -> tuple[str, str]:
    """The names of a block's attention and FFN norms, as Hugging Face has them for each placement."""
    if d.norm_position == "pre":
        return ("input_layernorm", "post_attention_layernorm")
    return ("post_attention_layernorm", "post_feedforward_layernorm")


def memory_layout(layer: MemoryLayerSpec, spec: ModelSpec) -> dict[str, TensorSpec]:
    """Tensors of one memory layer, without the `memory.{i}.` prefix; keys [H, R, n, kdim], rank-1 keys [H, n, kdim]."""
    hidden, table = spec.decoder.hidden_size, spec.tables[layer.table]
    rank = layer.rank if layer.scoring == "tucker" else 1
    shapes: dict[str, tuple[int, ...]] = {
        "query.weight": (layer.query_heads * 2 * layer.key_width, hidden),
        "row_keys": (layer.heads, rank, layer.row_keys, layer.key_width),
        "col_keys": (layer.heads, rank, layer.col_keys, layer.key_width),
    }
    if layer.rank_one_keys:
        shapes |= {f"{side}_rank_one": (layer.heads, *shapes[f"{side}_keys"][2:]) for side in ("row", "col")}
    for name, norm in (("query_norm", layer.query_norm), ("key_norm", layer.key_norm)):
        if norm:
            shapes |= _norm_shapes(name, norm, layer.key_width)
    if layer.scoring == "tucker":
        shapes["core"] = (layer.cores, layer.heads, rank, rank)
    if table.pre_value_width:
        width = table.pre_value_width // (2 if layer.gate_activation == "swiglu" else 1)
        shapes["pre_query.weight"] = (width, hidden)
    if layer.output_gate:
        shapes["output_gate.weight"] = (table.value_width, hidden)
    if not layer.expanded:
        shapes["output.weight"] = (hidden, layer.output_blocks * table.value_width)
    biases = {"query": layer.query_bias, "output_gate": layer.output_gate_bias, "output": layer.output_bias}
    shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name, there in biases.items() if there}
    if layer.token_gate:
        shapes |= _linear_shapes("token_gate", 1, hidden, True)
    layout = {name: TensorSpec(shape, "memory") for name, shape in shapes.items()}
    if layer.scoring == "tucker":
        layout |= {name: TensorSpec((layer.heads, rank), "buffer") for name in ("u", "v")}
    if layer.shuffle:
        layout["shuffle"] = TensorSpec((layer.virtual_slots,), "buffer")
    return layout


def _linear_shapes(name: str, out: int, inner: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (out, inner)}
    return shapes | {f"{name}.bias": (out,)} if bias else shapes


def _norm_shapes(name: str, norm: NormSpec, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,)} if norm.affine else {}
    return shapes | {f"{name}.bias": (width,)} if norm.affine and norm.bias else shapes
