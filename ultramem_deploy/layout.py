"""Which tensors a canonical checkpoint holds, and their shapes, from the model description alone (no torch).

The decoder's names are those that Hugging Face uses for Llama, so that an unchanged source shard is linked, not
rewritten. Memory layers are `memory.{i}.*`; value tables, which layers may share, are `tables.{name}.*`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

from .spec import DecoderSpec, ExpertsSpec, LatentSpec, MemoryLayerSpec, ModelSpec, NormSpec, TableSpec
from .storage import SCALE_DTYPE, STORAGES, dense_shapes

Role = Literal["dense", "memory", "table", "scales", "buffer"]
SELECTION_BIAS = "e_score_correction_bias"
"""A router's bias that chooses experts and does not weigh them; kept as stored, since ties hang on its last bits."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape of a tensor and what it is: multiplied weights, table rows and their scales, or a buffer (no parameter).

    `dtype` is what it must be stored as; None leaves the floating-point type free.
    """

    shape: tuple[int, ...]
    role: Role
    dtype: str | None = None


def tensor_layout(spec: ModelSpec) -> dict[str, TensorSpec]:
    """Every tensor that the checkpoint of `spec` must hold, by name."""
    layout: dict[str, TensorSpec] = {}
    for name, shape in decoder_shapes(spec.decoder).items():
        layout |= _dense_layout(name, shape, spec.decoder.dense)
    for index, layer in enumerate(spec.memory):
        layout |= {f"memory.{index}.{n}": t for n, t in memory_layout(layer, spec).items()}
    for name, table in spec.tables.items():
        layout |= {f"tables.{name}.{n}": t for n, t in table_layout(table, addressed_cores(spec, name)).items()}
    return layout


def addressed_cores(spec: ModelSpec, name: str) -> int:
    """Rows that operators address in one row of table `name`: M where it is expanded, else 1."""
    return max((layer.cores for layer in spec.memory if layer.table == name and layer.expanded), default=1)


def table_layout(table: TableSpec, cores: int = 1) -> dict[str, TensorSpec]:
    """Tensors of one table, without the `tables.{name}.` prefix; `cores` as `addressed_cores` tells."""
    layout: dict[str, TensorSpec] = {}
    for part, width, rows in (
        ("values", table.value_width, table.rows * cores),
        ("pre_values", table.pre_value_width, table.rows),
    ):
        if width and table.storage == "float":
            layout[part] = TensorSpec((table.rows, width), "table")
        elif width:
            stored = STORAGES[table.storage]
            layout[part] = TensorSpec((table.rows, stored.columns(width)), "table", stored.dtype)
            layout[f"{part}_scales"] = TensorSpec((rows,), "scales", SCALE_DTYPE)
    return layout


def _dense_layout(name: str, shape: tuple[int, ...], storage: str) -> dict[str, TensorSpec]:
    """A decoder tensor; a quantised weight as codes and scales (storage.py)."""
    if storage == "float" or not is_linear(name, shape):
        return {name: TensorSpec(shape, _role(name))}
    codes, scales = dense_shapes(shape[0], shape[1], storage)
    return {
        name: TensorSpec(codes, "dense", "uint8"),
        f"{name}_scales": TensorSpec(scales, "scales", SCALE_DTYPE),
    }


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a decoder tensor is the weight of a linear layer, which `quantize --dense` stores as codes."""
    return len(shape) == 2 and name.endswith(".weight") and not name.startswith("model.embed_tokens")


def _role(name: str) -> Role:
    return "buffer" if name.endswith(SELECTION_BIAS) else "dense"


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
    shapes = _latent_shapes(d, d.latent) if d.latent else _attention_shapes(d)
    if d.experts and d.has_experts(block):
        shapes |= _experts_shapes(d, d.experts, block)
    elif d.has_ffn(block):
        shapes |= _ffn_shapes("mlp", d, d.ffn_width(block))
    for name in block_norm_names(d, block):
        shapes |= _norm_shapes(name, d.norm, d.hidden_size)
    return shapes


def _attention_shapes(d: DecoderSpec) -> dict[str, tuple[int, ...]]:
    q_size, kv_size = d.num_heads * d.head_dim, d.num_kv_heads * d.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out in (("q", q_size), ("k", kv_size), ("v", kv_size)):
        shapes |= _linear_shapes(f"self_attn.{name}_proj", out, d.hidden_size, d.qkv_bias)
    shapes |= _linear_shapes("self_attn.o_proj", d.hidden_size, q_size, d.attention_output_bias)
    if d.qk_norm != "none":
        per_head = d.qk_norm == "head"
        shapes |= _norm_shapes("self_attn.q_norm", d.norm, d.head_dim if per_head else q_size)
        shapes |= _norm_shapes("self_attn.k_norm", d.norm, d.head_dim if per_head else kv_size)
    return shapes


def _latent_shapes(d: DecoderSpec, latent: LatentSpec) -> dict[str, tuple[int, ...]]:
    hidden, q_size = d.hidden_size, d.num_heads * d.head_dim
    expanded = d.num_heads * (d.head_dim - latent.rope_dim + latent.value_dim)
    if latent.query_rank is None:
        shapes = _linear_shapes("self_attn.q_proj", q_size, hidden, False)
    else:
        shapes = _linear_shapes("self_attn.q_a_proj", latent.query_rank, hidden, d.qkv_bias)
        shapes |= {"self_attn.q_a_layernorm.weight": (latent.query_rank,)}
        shapes |= _linear_shapes("self_attn.q_b_proj", q_size, latent.query_rank, False)
    shapes |= _linear_shapes("self_attn.kv_a_proj_with_mqa", latent.kv_rank + latent.rope_dim, hidden, d.qkv_bias)
    shapes |= {"self_attn.kv_a_layernorm.weight": (latent.kv_rank,)}
    shapes |= _linear_shapes("self_attn.kv_b_proj", expanded, latent.kv_rank, False)
    output = _linear_shapes("self_attn.o_proj", hidden, d.num_heads * latent.value_dim, d.attention_output_bias)
    return shapes | output


def _ffn_shapes(name: str, d: DecoderSpec, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _linear_shapes(f"{name}.gate_proj", width, d.hidden_size, d.mlp_bias)
    shapes |= _linear_shapes(f"{name}.up_proj", width, d.hidden_size, d.mlp_bias)
    return shapes | _linear_shapes(f"{name}.down_proj", d.hidden_size, width, d.mlp_bias)


def _experts_shapes(d: DecoderSpec, experts: ExpertsSpec, block: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if block in experts.layers:
        shapes["mlp.gate.weight"] = (experts.count, d.hidden_size)
        if experts.routing.selection_bias:
            shapes[f"mlp.gate.{SELECTION_BIAS}"] = (experts.count,)
        for expert in range(experts.count):
            shapes |= _ffn_shapes(f"mlp.experts.{expert}", d, experts.width)
    if experts.shared_width:
        shapes |= _ffn_shapes("mlp.shared_expert", d, experts.shared_width)
    if experts.shared_gate:
        shapes["mlp.shared_expert_gate.weight"] = (1, d.hidden_size)
    return shapes


@dataclass(frozen=True)
class BlockNorms:
    """Names of the norms before and after attention and FFN, None where there is none."""

    attention_input: str | None
    attention_output: str | None
    ffn_input: str | None
    ffn_output: str | None


def block_norms(d: DecoderSpec, block: int) -> BlockNorms:
    """The norms of a block, named as Hugging Face names them for each placement.

    A norm before the FFN makes what a memory layer reads, FFN or none; one behind it has nothing to norm without it.
    """
    behind = "post_feedforward_layernorm" if d.has_ffn(block) else None
    if d.norm_position == "pre":
        return BlockNorms("input_layernorm", None, "post_attention_layernorm", None)
    if d.norm_position == "post":
        return BlockNorms(None, "post_attention_layernorm", None, behind)
    return BlockNorms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", behind)


def block_norm_names(d: DecoderSpec, block: int) -> tuple[str, ...]:
    """The names of a block's norms, attention's first."""
    return tuple(name for name in astuple(block_norms(d, block)) if name)


def memory_layout(layer: MemoryLayerSpec, spec: ModelSpec) -> dict[str, TensorSpec]:
    """Tensors of one memory layer, without the `memory.{i}.` prefix; keys [H, R, n, kdim], rank-1 keys [H, n, kdim]."""
    hidden, table = spec.decoder.hidden_size, spec.tables[layer.table]
    rank = layer.key_rank
    shapes: dict[str, tuple[int, ...]] = {"col_keys": (layer.heads, rank, layer.col_keys, layer.key_width)}
    if layer.scoring != "signed":
        shapes["row_keys"] = (layer.heads, rank, layer.row_keys, layer.key_width)
    if not layer.reads_hidden:
        shapes["query.weight"] = (layer.query_heads * 2 * layer.key_width, hidden)
    if layer.rank_one_keys:
        shapes |= {f"{side}_rank_one": (layer.heads, *shapes[f"{side}_keys"][2:]) for side in ("row", "col")}
    for name, norm in (("query_norm", layer.query_norm), ("key_norm", layer.key_norm)):
        if norm:
            shapes |= _norm_shapes(name, norm, layer.key_width)
    if layer.scoring == "tucker":
        shapes["core"] = (layer.cores, layer.heads, rank, rank)
    if table.pre_value_width and not layer.reads_hidden:
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
    if layer.routing:
        layout["col_bias"] = TensorSpec((layer.col_keys,), "buffer")
    if layer.routing and layer.routing.selection_bias:
        layout[SELECTION_BIAS] = TensorSpec((layer.row_keys,), "buffer")
    if layer.shuffle:
        layout["shuffle"] = TensorSpec((layer.virtual_slots,), "buffer")
    return layout


def _linear_shapes(name: str, out: int, inner: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (out, inner)}
    return shapes | {f"{name}.bias": (out,)} if bias else shapes


def _norm_shapes(name: str, norm: NormSpec, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,)} if norm.affine else {}
    return shapes | {f"{name}.bias": (width,)} if norm.affine and norm.bias else shapes
