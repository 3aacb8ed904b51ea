"""One decoding step of a model over a cache that all models share, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.common import median
from ultramem_deploy.model.cache import KVCache
from ultramem_deploy.model.decoder import UltraMemModel
from ultramem_deploy.spec import DecoderSpec

DRAWN = 1 << 23
PARTS = ("projections", "kv", "ffn", "memory", "head", "other")


def filled_cache(decoder: DecoderSpec, batch: int, kv: int) -> KVCache:
    """A bfloat16 cache of `kv` places a token, the last of them free for the step's own."""
    cache = KVCache(decoder)
    shape = (batch, decoder.num_kv_heads, kv, decoder.head_dim)
    drawn = (torch.rand(min(torch.Size(shape).numel(), DRAWN)) - 0.5).bfloat16()
    for layer in range(decoder.num_layers):
        cache.append(layer, *(_repeated(drawn, shape, 2 * layer + side) for side in range(2)))
    cache.advance(kv - 1)
    return cache


def _repeated(drawn: torch.Tensor, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """`drawn` again and again, shifted: drawing every number of a large cache takes longer than the steps."""
    filled = torch.empty(shape, dtype=drawn.dtype)
    for i, part in enumerate(filled.view(-1).split(len(drawn))):
        part.copy_(drawn.roll(7 * i + seed)[: len(part)])
    return filled


@contextmanager
def clocked(model: UltraMemModel) -> Iterator[dict[str, float]]:
    """Seconds spent in attention as a whole, its projections, FFNs and memory layers while the block runs."""
    seconds = dict.fromkeys(("attention", "projections", "ffn", "memory"), 0.0)
    handles: list[Any] = []

    def clock(module: nn.Module, part: str) -> None:
        begun = [0.0]

        def before(*_: Any) -> None:
            begun[0] = time.perf_counter()

        def after(*_: Any) -> None:
            seconds[part] += time.perf_counter() - begun[0]

        handles.extend((module.register_forward_pre_hook(before), module.register_forward_hook(after)))

    for block in model.model.layers:
        clock(block.self_attn, "attention")
        clock(block.mlp, "ffn")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            clock(getattr(block.self_attn, name), "projections")
    for layer in model.memory:
        clock(layer, "memory")
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def step(model: UltraMemModel, cache: KVCache, ids: torch.Tensor) -> dict[str, float]:
    """Seconds of one step of tokens [B, 1], whole and by part; the cache is left as it was found.

    "kv" is attention without its projections: rotary positions, the cache's update and reads.
    """
    with clocked(model) as seconds:
        start = time.perf_counter()
        x = model.embed(ids)
        x = model.blocks(x, model.context(ids, None, cache), 0, len(model.model.layers))
        before_head = time.perf_counter()
        model.head(x)
        end = time.perf_counter()
    found = {name: seconds[name] for name in ("projections", "ffn", "memory")}
    found |= {"kv": seconds["attention"] - seconds["projections"], "head": end - before_head}
    found["other"] = end - start - sum(found.values())
    return found | {"sparse": found["ffn"] + found["memory"], "step": end - start}


def measure(
    models: dict[str, UltraMemModel], batch: int, kv: int, budget: float
) -> tuple[dict[str, dict[str, float]], int]:
    """Medians of each model's steps, in turn for about `budget` seconds, the first left out; and their number."""
    decoder = next(iter(models.values())).spec.decoder
    cache = filled_cache(decoder, batch, kv)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or min(map(len, found.values())) < 4:
        for name, model in models.items():
            found[name].append(step(model, cache, torch.randint(decoder.vocab_size, (batch, 1))))
    medians = {name: {p: median([s[p] for s in steps[1:]]) for p in steps[0]} for name, steps in found.items()}
    return medians, len(next(iter(found.values())))
