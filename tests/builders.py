"""Random canonical checkpoints: small models in which every tensor matters to the logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ultramem_deploy.checkpoint import Stage, TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.layout import TensorSpec, tensor_layout
from ultramem_deploy.spec import DecoderSpec, MemoryLayerSpec, ModelSpec, NormSpec, RopeSpec, RoutingSpec, TableSpec

RMS = NormSpec("rms", 1e-5)
LAYER = NormSpec("layer", 1e-5)
DECODER = DecoderSpec(
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=61,
    max_positions=512,
    norm=RMS,
    rope=RopeSpec(theta=10000.0),
)


def decoder(**changes: Any) -> DecoderSpec:
    """The small decoder with some fields changed."""
    return replace(DECODER, **changes)


def ultramem_v1(**changes: Any) -> MemoryLayerSpec:
    """Two heads, one query, four virtual blocks, shuffled."""
    base = MemoryLayerSpec(
        kind="ultramem_v1", read_block=0, write_block=1, heads=2, top_m=4, row_keys=12, col_keys=12, key_width=8,
        table="t", slots=36, query_norm=LAYER, key_norm=LAYER, blocks=4, shuffle=True,
    )  # fmt: skip
    return replace(base, **changes)


def ultramem_v2(**changes: Any) -> MemoryLayerSpec:
    """A window of a shared table that wraps round, blocks summed, pre-value gate."""
    base = MemoryLayerSpec(
        kind="ultramem_v2", read_block=0, write_block=0, heads=2, top_m=4, row_keys=12, col_keys=12, key_width=8,
        table="t", slots=36, offset=30, query_norm=RMS, key_norm=RMS, blocks=4, sum_blocks=True, shuffle=True,
        gate_activation="gelu",
    )  # fmt: skip
    return replace(base, **changes)


def memory_plus(**changes: Any) -> MemoryLayerSpec:
    """Additive scores, a query a head, softmax, output gate."""
    base = MemoryLayerSpec(
        kind="memory_plus", read_block=1, write_block=1, heads=2, top_m=4, row_keys=12, col_keys=12, key_width=8,
        table="t", slots=144, query_heads=2, query_norm=RMS, scoring="additive", cores=1, score_function="softmax",
        output_gate=True,
    )  # fmt: skip
    return replace(base, **changes)


def signed(**changes: Any) -> MemoryLayerSpec:
    """Two parts of 12 neurons, both signs, a silu gate: what an upcycled FFN becomes."""
    base = MemoryLayerSpec(
        kind="ultramem_v2", read_block=0, write_block=0, heads=1, top_m=12, row_keys=4, col_keys=12, key_width=32,
        table="t", slots=24, scoring="signed", cores=1, blocks=2, sum_blocks=True, gate_activation="silu",
        expanded=True,
    )  # fmt: skip
    return replace(base, **changes)


V1 = ModelSpec(DECODER, (ultramem_v1(),), {"t": TableSpec(36, 16)})
V2 = ModelSpec(
    DECODER, (ultramem_v2(), ultramem_v2(read_block=1, write_block=1, offset=0)), {"t": TableSpec(60, 16, 8)}
)
PLUS = ModelSpec(DECODER, (memory_plus(),), {"t": TableSpec(144, 16)})
PKM = ModelSpec(DECODER, (memory_plus(kind="pkm", output_gate=False, query_norm=None),), {"t": TableSpec(144, 16)})
EXPANDED = ModelSpec(
    DECODER, (ultramem_v1(expanded=True, blocks=1, shuffle=False, slots=144),), {"t": TableSpec(144, 64)}
)
ROUTED = ModelSpec(
    DECODER,
    (
        memory_plus(
            kind="pkm", heads=1, query_heads=1, top_m=16, row_keys=6, col_keys=8, slots=48, key_width=32,
            query_norm=None, score_function="none", output_gate=False, expanded=True, routing=RoutingSpec(2),
            gate_activation="swiglu",
        ),
    ),
    {"t": TableSpec(48, 32, 64)},
)  # fmt: skip
"""Six experts of eight neurons each, as a memory."""
SIGNED = ModelSpec(DECODER, (signed(),), {"t": TableSpec(28, 32, 32)})
PLAIN = ModelSpec(DECODER)


def random_tensors(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 (int64 for a shuffle) arrays of every tensor; scales such that no part drowns another."""
    rng = np.random.default_rng(seed)
    tensors = {name: _draw(name, tensor, rng) for name, tensor in tensor_layout(spec).items()}
    for index, layer in enumerate(spec.memory):
        if layer.scoring == "tucker":
            _align(tensors, f"memory.{index}")
        if layer.rank_one_keys:
            for side, factor in (("row", "u"), ("col", "v")):
                pair = (tensors[f"memory.{index}.{name}"] for name in (factor, f"{side}_keys"))
                tensors[f"memory.{index}.{side}_rank_one"] = np.einsum("hr,hrnd->hnd", *pair)
    return tensors


def _draw(name: str, tensor: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    shape = tensor.shape
    if name.endswith(".shuffle"):
        return rng.permutation(shape[0])
    values = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("norm.weight"):
        return 1 + np.float32(0.2) * values
    if name.endswith(".bias"):
        return np.float32(0.3) * values
    if name.endswith(".core"):
        return np.float32(0.2) * values
    if tensor.role == "table":
        return np.float32(0.4) * values
    if "keys" in name:
        return values
    return values / np.float32(np.sqrt(shape[-1]))


def _align(tensors: dict[str, np.ndarray], prefix: str) -> None:
    """u and v are the best rank-1 approximation of the summed core, as in a trained checkpoint."""
    left, _, right = np.linalg.svd(tensors[f"{prefix}.core"].sum(0))
    tensors[f"{prefix}.u"] = np.ascontiguousarray(left[:, :, 0])
    tensors[f"{prefix}.v"] = np.ascontiguousarray(right[:, 0, :])


def write_checkpoint(
    directory: Path,
    spec: ModelSpec,
    *,
    dtype: str = "float32",
    seed: int = 0,
    max_shard_bytes: int = 4 << 30,
    tokenizer: bool = False,
    changes: dict[str, np.ndarray] | None = None,
) -> Path:
    """A canonical checkpoint directory of random tensors, floating ones stored as `dtype`; returns `directory`.

    The decoder and the memory lie in shards apart. `changes` replaces tensors; `tokenizer` adds `write_tokenizer`'s.
    """
    source = SourceRecord("random", "file", {}, f"{seed}")
    with Stage(directory, "random", source, {"seed": seed}, max_shard_bytes=max_shard_bytes) as stage:
        arrays = random_tensors(spec, seed) | (changes or {})
        stored = {n: a.astype(numpy_dtype(dtype)) if a.dtype == np.float32 else a for n, a in arrays.items()}
        for group in ("decoder", "memory"):
            names = [n for n in stored if n.startswith(("memory.", "tables.")) == (group == "memory")]
            if names:
                stage.write_tensors(group, [TensorTask.of(name, stored[name]) for name in names])
        stage.write_json("config.json", spec.to_config())
        if tokenizer:
            write_tokenizer(stage.workdir, spec.decoder.vocab_size)
    return directory


def write_tokenizer(directory: Path, vocab_size: int = DECODER.vocab_size) -> None:
    """A tokenizer.json of single characters: lower-case letters and some punctuation, id 0 for all others."""
    characters = "abcdefghijklmnopqrstuvwxyz .,\n'"[: vocab_size - 1]
    vocab = {"?": 0} | {c: i + 1 for i, c in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))


def write_byte_tokenizer(directory: Path, text: str, vocab_size: int = DECODER.vocab_size) -> None:
    """A byte-level BPE tokenizer.json of exactly the characters of `text` and merges learnt on it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    tokenizer.save(str(directory / "tokenizer.json"))


def write_text(path: Path, documents: int = 40, seed: int = 0) -> Path:
    """Documents of sentences from a few words: text that a tiny model can learn, some of it held out."""
    words = ["memory", "table", "holds", "a", "value", "for", "every", "slot", "and", "the", "query", "finds", "it"]
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(words, 12)) + "." for _ in range(documents * 6)]
    texts = ["\n\n".join(sentences[i : i + 6]) for i in range(0, len(sentences), 6)]
    path.write_text("\f".join(texts), encoding="utf-8")
    return path
