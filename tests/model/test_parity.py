"""Logits of imported checkpoints against transformers' own, for tiny random models of every family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ultramem_deploy.converters.importers import import_checkpoint
from ultramem_deploy.model import KVCache, UltraMemModel, load

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LENGTH = 24
VOCAB = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
QWEN_EXPERTS = {**EXPERTS, "moe_intermediate_size": 40, "num_key_value_heads": 2}
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "num_nextn_predict_layers": 0,
}
GEMMA = {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 6, "query_pre_attn_scalar": 20}
GEMMA_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-gqa-tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-mqa-head-dim": ("Llama", {"num_key_value_heads": 1, "head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-gelu-tanh": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "mistral": ("Mistral", {"sliding_window": None, "num_key_value_heads": 2}),
    "mistral-window": ("Mistral", {"sliding_window": 7, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {**QWEN_WINDOW, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"head_dim": 24, "num_key_value_heads": 2}),
    "qwen3-window-bias": ("Qwen3", {**QWEN_WINDOW, "head_dim": 16, "attention_bias": True}),
    "olmo": ("Olmo", {"num_key_value_heads": 2}),
    "olmo-clip": ("Olmo", {"clip_qkv": 0.4}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2}),
    "olmo2-bias": ("Olmo2", {"attention_bias": True}),
    "llama-rope-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-rope-yarn-mscale": ("Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}}),
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": GEMMA_TYPES}),
    "gemma3-untied-bias": ("Gemma3", {**GEMMA, "tie_word_embeddings": False, "attention_bias": True}),
    "olmoe": ("Olmoe", {**EXPERTS, "num_key_value_heads": 2}),
    "olmoe-normalised-clipped": ("Olmoe", {**EXPERTS, "norm_topk_prob": True, "clip_qkv": 0.4}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "num_key_value_heads": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 7}),
    "qwen2-moe": ("Qwen2Moe", {**QWEN_EXPERTS, "shared_expert_intermediate_size": 56, "mlp_only_layers": [1]}),
    "qwen2-moe-step": ("Qwen2Moe", {**QWEN_EXPERTS, "decoder_sparse_step": 2, "norm_topk_prob": True}),
    "qwen3-moe": ("Qwen3Moe", {**QWEN_EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
    "deepseek-v3": ("DeepseekV3", DEEPSEEK),
    "deepseek-v3-plain": (
        "DeepseekV3",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "rope_interleave": False,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
    ),
    "deepseek-v3-yarn": (
        "DeepseekV3",
        {**DEEPSEEK, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "attention_bias": True},
    ),
}


@dataclass(frozen=True)
class Pair:
    theirs: Any
    ours: UltraMemModel


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, options: dict[str, Any]) -> Any:
    """A transformers model whose every parameter matters: norms around 1, biases away from 0."""
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**{**SMALL, **options})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        biases = [(k, b) for k, b in model.named_buffers() if k.endswith("e_score_correction_bias")]
        for key, parameter in [*model.named_parameters(), *biases]:
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in key and parameter.ndim == 1
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.15 * noise)
    return model


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory: Path = tmp_path_factory.mktemp("parity")
    theirs = build(*CASES[request.param])
    theirs.save_pretrained(directory / "source", max_shard_size="40KB")
    summary = import_checkpoint(directory / "source", directory / "out")
    renamed = request.param.startswith("mixtral")  # a shard with one renamed tensor is written anew
    assert renamed or summary["linked"] >= 2, "the source should have several shards, all of them linked"
    return Pair(theirs, load(directory / "out"))


def token_ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    worst = (found - expected).abs().max().item()
    assert torch.isfinite(found).all()
    assert expected.abs().max() > 0.1, "logits this small would hide a difference"
    assert worst <= TOLERANCE, f"worst absolute difference {worst:.3g}"


def test_logits(pair: Pair) -> None:
    ids = token_ids()
    assert_close(pair.ours(ids), reference(pair.theirs, ids))


def test_last_logits_alone(pair: Pair) -> None:
    ids = token_ids()
    assert_close(pair.ours(ids, logits_to_keep=3), reference(pair.theirs, ids)[:, -3:])


@pytest.mark.parametrize("split", [1, 9, LENGTH - 1])
def test_cache_in_two_pieces(pair: Pair, split: int) -> None:
    ids = token_ids()
    cache = KVCache(pair.ours.spec.decoder)
    pieces = [pair.ours(ids[:, :split], cache=cache), pair.ours(ids[:, split:], cache=cache)]
    assert cache.length == LENGTH
    assert_close(torch.cat(pieces, 1), reference(pair.theirs, ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
def test_padded_batch(pair: Pair, side: str, cached: bool) -> None:
    ids, mask = token_ids(3), torch.ones(3, LENGTH, dtype=torch.long)
    for row, count in ((1, 4), (2, 11)):
        mask[row, slice(0, count) if side == "left" else slice(LENGTH - count, LENGTH)] = 0
    ids[mask == 0] = 0
    if cached:
        cache, split = KVCache(pair.ours.spec.decoder), 13
        first = pair.ours(ids[:, :split], mask[:, :split], cache)
        found = torch.cat((first, pair.ours(ids[:, split:], mask, cache)), 1)
    else:
        found = pair.ours(ids, mask)
    kept = mask.bool()
    assert_close(found[kept], reference(pair.theirs, ids, mask)[kept])
    alone = pair.ours(ids[2][mask[2].bool()][None])
    assert_close(found[2][mask[2].bool()][None], alone)
