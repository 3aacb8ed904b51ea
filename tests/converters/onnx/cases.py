"""The configurations that exports are tested in: every field of the description that changes the graph."""

from __future__ import annotations

from dataclasses import replace

from tests import builders as b
from ultramem_deploy.spec import ExpertsSpec, LatentSpec, ModelSpec, NormSpec, RopeSpec, RoutingSpec, TableSpec

LLAMA3 = RopeSpec(100.0, "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8)

YARN = RopeSpec(100.0, "yarn", factor=4.0, original_max_positions=8, attention_factor=1.3, truncate=False)
GEMMA = b.decoder(
    norm=NormSpec("rms", 1e-5, unit_offset=True), norm_position="both", qk_norm="head", embedding_scale=3.0,
    attention_scale=0.3, sliding_window=3, sliding_layers=(0,), sliding_rope=RopeSpec(20.0),
)  # fmt: skip
GROUPS = RoutingSpec(3, "sigmoid", groups=4, top_groups=2, selection_bias=True, scale=2.5)

SHARED = ExpertsSpec((), 6, 8, RoutingSpec(2), 20, shared_layers=(0, 1))

DECODERS = {
    "llama": b.decoder(),
    "tied": b.decoder(tie_embeddings=True),
    "one_kv_head": b.decoder(num_kv_heads=1),
    "all_kv_heads": b.decoder(num_kv_heads=4),
    "odd_head_dim": b.decoder(head_dim=6),
    "layer_norm": b.decoder(norm=NormSpec("layer", 1e-5)),
    "layer_norm_bias": b.decoder(norm=NormSpec("layer", 1e-5, bias=True)),
    "layer_norm_bare": b.decoder(norm=NormSpec("layer", 1e-5, affine=False)),
    "rms_bias": b.decoder(norm=NormSpec("rms", 1e-2, bias=True)),
    "rms_bare": b.decoder(norm=NormSpec("rms", 1e-5, affine=False)),
    "post_norm": b.decoder(norm_position="post", qk_norm="projection"),
    "qk_norm_head": b.decoder(qk_norm="head"),
    "qk_norm_head_layer_bias": b.decoder(qk_norm="head", norm=NormSpec("layer", 1e-5, bias=True)),
    "biases": b.decoder(qkv_bias=True, attention_output_bias=True, mlp_bias=True),
    "head_bias": b.decoder(lm_head_bias=True),
    "no_ffn": b.decoder(ffn_widths=(20, 0), mlp_bias=True),
    "no_ffn_post_norm": b.decoder(ffn_widths=(0, 20), norm_position="post"),
    "clip": b.decoder(clip_qkv=0.5),
    "clip_qk_norm": b.decoder(clip_qkv=0.5, qk_norm="projection"),
    "window": b.decoder(sliding_window=3, sliding_layers=(1,)),
    "window_odd": b.decoder(sliding_window=3, sliding_layers=(0, 1), head_dim=8),
    "linear_rope": b.decoder(rope=RopeSpec(100.0, "linear", factor=2.5)),
    "llama3_rope": b.decoder(rope=LLAMA3),
    "gelu": b.decoder(activation="gelu"),
    "gelu_tanh": b.decoder(activation="gelu_tanh"),
    "gemma": GEMMA,
    "gemma_odd": replace(GEMMA, head_dim=6),
    "yarn": b.decoder(rope=YARN),
    "interleaved": b.decoder(rope=RopeSpec(100.0, interleaved=True)),
    "interleaved_odd": b.decoder(rope=RopeSpec(100.0, interleaved=True), head_dim=6),
    "latent": b.decoder(num_kv_heads=4, head_dim=14, latent=LatentSpec(12, 6, 10, 1e-6, 11)),
    "latent_direct": b.decoder(num_kv_heads=4, latent=LatentSpec(12, 6, 10, 1e-6), qkv_bias=True),
}

BARE = NormSpec("layer", 1e-5, affine=False)
BIASED = NormSpec("layer", 1e-5, bias=True)
CROSSING = tuple(replace(layer, write_block=layer.read_block + 1) for layer in b.V2.memory)


def _memory(model: ModelSpec, **changes: object) -> ModelSpec:
    return replace(model, memory=tuple(replace(layer, **changes) for layer in model.memory))


MEMORIES = {
    "v1": b.V1,
    "v1_query_a_head": _memory(b.V1, query_heads=2),
    "v1_biased_norms": _memory(b.V1, query_norm=BIASED, key_norm=BIASED),
    "v1_bare_norms": _memory(b.V1, query_norm=BARE, key_norm=BARE),
    "v1_no_norms": _memory(b.V1, query_norm=None, key_norm=None),
    "v1_no_shuffle": _memory(b.V1, shuffle=False),
    "v1_rank3_cores4": _memory(b.V1, rank=3, cores=4),
    "v1_few_keys": _memory(b.V1, row_keys=3, col_keys=48, top_m=6),
    "v1_post_norm": replace(b.V1, decoder=b.decoder(norm_position="post", qk_norm="projection")),
    "v2": b.V2,
    "v2_plain_gate": _memory(b.V2, gate_activation="none"),
    "v2_silu": _memory(b.V2, gate_activation="silu"),
    "v2_swiglu": _memory(b.V2, gate_activation="swiglu"),
    "v2_blocks": _memory(b.V2, sum_blocks=False),
    "v2_crossing": replace(b.V2, memory=CROSSING, decoder=b.decoder(num_layers=3)),
    "memory_plus": b.PLUS,
    "memory_plus_shared_query": _memory(b.PLUS, query_heads=1),
    "memory_plus_biases": _memory(b.PLUS, query_bias=True, output_bias=True, output_gate_bias=True, token_gate=True),
    "pkm": b.PKM,
    "v1_rank_one_keys": _memory(b.V1, key_norm=None, rank_one_keys=True),
    "v2_rank_one_keys": _memory(b.V2, key_norm=None, rank_one_keys=True, query_heads=2, rank=3),
    "v1_few_rank_one_keys": _memory(b.V1, key_norm=None, rank_one_keys=True, row_keys=3, col_keys=48, top_m=6),
    "v1_empty_slot": _memory(b.V1, slots=4, row_keys=4, col_keys=4, empty_slot=9),
    "v2_empty_slot": _memory(b.V2, slots=4, row_keys=4, col_keys=4, empty_slot=9),
    "v1_no_ffn": replace(b.V1, decoder=b.decoder(ffn_widths=(0, 0))),
    "expanded_token_gate": _memory(b.EXPANDED, token_gate=True),
    "routed": b.ROUTED,
    "routed_partly": replace(b.ROUTED, memory=(replace(b.ROUTED.memory[0], top_m=13),)),
    "routed_groups": replace(b.ROUTED, memory=(replace(b.ROUTED.memory[0], routing=replace(GROUPS, groups=3)),)),
    "shared_alone": replace(b.ROUTED, decoder=b.decoder(experts=replace(SHARED, shared_gate=True))),
    "signed": b.SIGNED,
    "signed_some_kept": _memory(b.SIGNED, kept_values=5),
    "v2_some_kept": _memory(b.V2, kept_values=3, cores=1),
    "signed_no_ffn": replace(b.SIGNED, decoder=b.decoder(ffn_widths=(0, 20))),
    "expanded": b.EXPANDED,
    "expanded_gated": replace(_memory(b.EXPANDED, gate_activation="silu"), tables={"t": TableSpec(144, 64, 8)}),
}
EXPERTS = {
    "softmax": b.decoder(experts=ExpertsSpec((0, 1), 6, 12, RoutingSpec(2))),
    "shared_gate": b.decoder(experts=ExpertsSpec((1,), 6, 12, RoutingSpec(3, normalise=True), 20, True, (0,))),
    "groups": b.decoder(experts=ExpertsSpec((1,), 8, 12, GROUPS, 20)),
    "groups_normalised": b.decoder(experts=ExpertsSpec((1,), 8, 12, replace(GROUPS, normalise=True))),
    "biased_softmax": b.decoder(experts=ExpertsSpec((0,), 6, 12, RoutingSpec(2, selection_bias=True))),
}
"""For ONNX Runtime alone."""
MODELS = {f"decoder-{name}": ModelSpec(decoder) for name, decoder in DECODERS.items()} | {
    f"memory-{name}": model for name, model in MEMORIES.items()
}
