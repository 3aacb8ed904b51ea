"""A model on the native dense layers gives the numbers of the same model on plain products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import builders
from ultramem_deploy.model import KVCache, load
from ultramem_deploy.ops import native_linear
from ultramem_deploy.spec import ModelSpec

MODELS = {
    "v1": builders.V1,
    "v2": builders.V2,
    "memory plus": builders.PLUS,
    "untied": replace(builders.V1, decoder=builders.decoder(tie_embeddings=False)),
    "dense with biases": ModelSpec(builders.decoder(qkv_bias=True, mlp_bias=True)),
}


def in_float32(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The product as the kernel promises it: sums in float32, rounded once."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(dtype)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float32", 1e-5)])
@torch.no_grad()
def test_the_same_logits(
    dtype: str, tolerance: float, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(builders.write_checkpoint(tmp_path / "model", MODELS[name]), dtype=dtype)
    ids = torch.arange(24).view(2, 12) % 61
    calls: list[int] = []
    product = native_linear.product
    monkeypatch.setattr(native_linear, "most_rows", lambda _: 128)
    with monkeypatch.context() as patch:
        patch.setattr(native_linear, "product", in_float32)
        plain = model(ids)

    def counted(*given: Any) -> torch.Tensor:
        calls.append(1)
        return product(*given)

    monkeypatch.setattr(native_linear, "product", counted)
    # Sums in another order round a number here and there to its neighbour, of eight bits or of twenty-four.
    close = {"rtol": tolerance, "atol": tolerance * float(plain.abs().max())}
    torch.testing.assert_close(model(ids), plain, **close)
    assert len(calls) > 14  # seven a block, and the head
    cache = KVCache(model.spec.decoder)
    model(ids[:, :11], cache=cache)
    torch.testing.assert_close(model(ids[:, 11:], cache=cache), plain[:, 11:], **close)


@torch.no_grad()
def test_keys_are_normalised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = load(builders.write_checkpoint(tmp_path / "model", builders.V1)).memory_layers[0]
    assert layer.key_norm is not None
    layer.row_keys = nn.Parameter(layer.row_keys.clone(), requires_grad=False)  # the file's pages cannot be written
    calls: list[int] = []
    layer.key_norm.register_forward_hook(lambda *_: calls.append(1))
    hidden = torch.randn(5, layer.hidden_size, generator=torch.Generator().manual_seed(0))
    first = layer.key_scores(hidden)
    assert len(calls) == 2
    for one, other in zip(layer.key_scores(hidden), first, strict=True):
        assert torch.equal(one, other)
    assert len(calls) == 2
    layer.row_keys.mul_(torch.linspace(-1, 1, layer.row_keys.shape[-1]))
    changed = layer.key_scores(hidden)
    assert len(calls) == 3
    assert not torch.equal(changed[0], first[0])
    assert torch.equal(changed[1], first[1])
    with torch.enable_grad():
        assert torch.equal(layer.key_scores(hidden)[0], changed[0])
    assert len(calls) == 5
    # Other keys, changed as often, may come to lie where the old ones lay.
    address, other = layer.row_keys.data_ptr(), layer.row_keys.flip(2)
    del layer.row_keys
    tried = [nn.Parameter(other.clone().mul_(1), requires_grad=False) for _ in range(16)]
    layer.row_keys = next((keys for keys in tried if keys.data_ptr() == address), tried[0])
    assert torch.equal(layer.key_scores(hidden)[0], changed[0].flip(3))


@torch.no_grad()
def test_float32_keys_meet_bfloat16_queries(tmp_path: Path) -> None:
    """As folds leave them: converted once, and again when they change."""
    layer = load(builders.write_checkpoint(tmp_path / "model", builders.V2), dtype="bfloat16").memory_layers[0]
    layer.key_norm = None
    layer.row_keys = nn.Parameter(layer.row_keys.float(), requires_grad=False)
    hidden = torch.randn(5, layer.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = layer.key_scores(hidden)[0]
    assert torch.equal(layer.key_scores(hidden)[0], before)
    layer.row_keys.mul_(2)
    assert torch.equal(layer.key_scores(hidden)[0], 2 * before)
