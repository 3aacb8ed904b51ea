"""Weights in oneDNN's order give the numbers of the same weights as they are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import builders
from ultramem_deploy.errors import InputError
from ultramem_deploy.model import KVCache, load
from ultramem_deploy.model.packing import PackedLinear
from ultramem_deploy.spec import ModelSpec

MODELS = {
    "v1": builders.V1,
    "v2": builders.V2,
    "memory plus": builders.PLUS,
    "untied": replace(builders.V1, decoder=builders.decoder(tie_embeddings=False)),
    "dense with biases": ModelSpec(builders.decoder(qkv_bias=True, mlp_bias=True)),
}
able = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products")


@able
@pytest.mark.parametrize("name", MODELS)
def test_the_same_logits(name: str, tmp_path: Path) -> None:
    path = builders.write_checkpoint(tmp_path / "model", MODELS[name])
    plain, packed = load(path, dtype="bfloat16"), load(path, dtype="bfloat16", pack=True)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) > 7
    ids = torch.arange(24).view(2, 12) % 61
    whole = plain(ids)
    # Products of bfloat16 summed in another order, each rounded once: a few units of 2^-8.
    close = {"rtol": 0.05, "atol": 0.05 * float(whole.abs().max())}
    torch.testing.assert_close(packed(ids), whole, **close)
    cache = KVCache(packed.spec.decoder)
    packed(ids[:, :11], cache=cache)
    torch.testing.assert_close(packed(ids[:, 11:], cache=cache), whole[:, 11:], **close)


@able
def test_keys_are_packed_normalised(tmp_path: Path) -> None:
    path = builders.write_checkpoint(tmp_path / "model", builders.V1)
    plain, packed = (load(path, dtype="bfloat16", pack=pack).memory_layers[0] for pack in (False, True))
    assert set(packed.packed_keys) == {"row_keys", "col_keys"}
    hidden = torch.randn(5, plain.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    for one, other in zip(packed.key_scores(hidden), plain.key_scores(hidden), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)  # bfloat16 has eight bits


def test_other_types_are_refused(tmp_path: Path) -> None:
    path = builders.write_checkpoint(tmp_path / "model", builders.V1)
    with pytest.raises(InputError, match=r"pack: expected bfloat16 weights .* found torch\.float32 on cpu"):
        load(path, dtype="float32", pack=True)
