"""The key-value cache: feeding in pieces, growth, sliding windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import builders as b
from tests.model.test_memory import build
from ultramem_deploy.model import KVCache
from ultramem_deploy.spec import ModelSpec

SPECS = {
    "memory": b.V1,
    "window": replace(b.V1, decoder=b.decoder(sliding_window=5, sliding_layers=(1,))),
    "clip, norms of heads": replace(b.V1, decoder=b.decoder(clip_qkv=0.5, qk_norm="head")),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("pieces", [(1,) * 20, (64, 1, 65, 10), (3, 0, 17)], ids=["steps", "growth", "empty piece"])
def test_pieces_equal_the_whole(spec: ModelSpec, pieces: tuple[int, ...]) -> None:
    model = build(spec, b.random_tensors(spec))
    ids = torch.randint(0, 61, (2, sum(pieces)), generator=torch.Generator().manual_seed(0))
    cache = KVCache(spec.decoder)
    parts = [model(part, cache=cache) for part in ids.split(list(pieces), dim=1)]
    assert cache.length == sum(pieces)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-4, atol=1e-4)


def test_append_returns_what_was_appended() -> None:
    cache = KVCache(b.DECODER)
    pieces = [torch.randn(2, 2, n, 16) for n in (3, 70, 1, 200)]
    for piece in pieces:
        for layer in range(b.DECODER.num_layers):
            keys, values = cache.append(layer, piece + layer, -piece)
        cache.advance(piece.shape[2])
    assert torch.equal(keys, torch.cat(pieces, 2) + 1)
    assert torch.equal(values, -torch.cat(pieces, 2))
    assert cache.length == 274


def test_two_caches_are_apart() -> None:
    model = build(b.V1, b.random_tensors(b.V1))
    first, second = KVCache(b.DECODER), KVCache(b.DECODER)
    ids = torch.randint(0, 61, (1, 8), generator=torch.Generator().manual_seed(0))
    alone = model(ids, cache=KVCache(b.DECODER))
    model(ids[:, :4], cache=first)
    model(ids.flip(1), cache=second)
    torch.testing.assert_close(model(ids[:, 4:], cache=first), alone[:, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_a_window_ends_where_it_says(cached: bool) -> None:
    spec = ModelSpec(b.decoder(num_layers=1, sliding_window=3, sliding_layers=(0,)))
    model = build(spec, b.random_tensors(spec))
    ids = torch.arange(10)[None]

    def last(changed: int) -> torch.Tensor:
        other = ids.clone()
        other[0, changed] = 50
        cache = KVCache(spec.decoder) if cached else None
        if cached:
            model(other[:, :6], cache=cache)
        return model(other[:, 6:] if cached else other, cache=cache)[0, -1]

    unchanged = last(0)
    assert torch.equal(last(6), unchanged), "position 9 sees 7, 8 and 9"
    assert not torch.allclose(last(7), unchanged)
