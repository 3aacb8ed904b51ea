"""Meta's memory code: Memory+, plain product keys and PEER in place of FFNs, against an independent forward pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.nn import functional as F

import ultramem_deploy
from ultramem_deploy.converters.importers import import_checkpoint, plan_import
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

State = dict[str, torch.Tensor]
IDS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(2))
BASE = {"dim": 24, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 50, "multiple_of": 8, "max_seqlen": 64}
MEMORY = {"is_enabled": True, "layers": "1,3", "mem_n_keys": 6, "mem_heads": 2, "mem_knn": 3, "mem_k_dim": 8}
WIDTH = 64  # of the FFN: 8 * ceil(int(2 * 96 / 3) / 8)
VARIANTS: dict[str, dict[str, Any]] = {
    "memory+": {},
    "values of another width": {"mem_v_dim": 20},
    "tables apart": {"mem_share_values": False},
    "product keys": {"swilu_projection": False},
    "product keys, projected": {"swilu_projection": False, "mem_v_dim": 20},
    "gated": {"mem_gated": True},
    "product keys, gated": {"swilu_projection": False, "mem_gated": True},
    "peer, gated": {"peer_variant": True, "mem_gated": True},
    "peer": {"peer_variant": True},
    "peer without projections": {"peer_variant": True, "swilu_projection": False},
}


def params(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "model": {**BASE, "productkey_args": MEMORY | changes}}


def make_state(memory: dict[str, Any], biases: bool = False) -> State:
    generator = torch.Generator().manual_seed(1)
    state: State = {}

    def put(name: str, *shape: int) -> None:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
        state[name] = torch.randn(shape, generator=generator) * scale + (len(shape) == 1)

    def linear(name: str, out: int, inner: int) -> None:
        put(f"{name}.weight", out, inner)
        put(f"{name}.bias", out)
        if not biases:
            state[f"{name}.bias"].zero_()

    memory = {"mem_v_dim": -1, "swilu_projection": True, "peer_variant": False, "mem_share_values": True} | memory
    put("tok_embeddings.weight", 50, 24)
    put("norm.weight", 24)
    put("output.weight", 50, 24)
    wide = memory["mem_v_dim"] if memory["mem_v_dim"] > 0 else 24
    for i in range(4):
        p = f"layers.{i}."
        for name, rows in (("wq", 24), ("wk", 12), ("wv", 12), ("wo", 24)):
            put(f"{p}attention.{name}.weight", rows, 24)
        put(f"{p}attention_norm.weight", 24)
        put(f"{p}ffn_norm.weight", 24)
        m = f"{p}feed_forward."
        if i not in (1, 3):
            put(f"{m}w1.weight", WIDTH, 24)
            put(f"{m}w3.weight", WIDTH, 24)
            put(f"{m}w2.weight", 24, WIDTH)
            continue
        put(f"{m}keys", 2 * 2 * 6, 4)
        state[f"{m}keys"] *= 3
        linear(f"{m}query_proj.query_mlps.0", 16, 24)
        for name in ("values_u", "values_v") if memory["peer_variant"] else ("values",):
            put(f"{m}{name}.weight", 36, wide)
            state[f"{m}{name}.weight"] *= 4
            if memory["mem_share_values"] and i == 3:
                state[f"{m}{name}.weight"] = state[f"layers.1.feed_forward.{name}.weight"]
        if memory["swilu_projection"] or memory["mem_v_dim"] > 0:
            linear(f"{m}value_proj", 24, wide)
        if memory["swilu_projection"]:
            linear(f"{m}swilu_projection", wide, 24)
        if memory.get("mem_gated"):
            linear(f"{m}gating", 1, 24)
    return state


def forward(state: State, memory: dict[str, Any]) -> torch.Tensor:
    """Logits in float64, from spec §7 and the published architecture."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * s[name]

    def rotate(x: torch.Tensor) -> torch.Tensor:  # pairs of neighbours, as complex numbers
        angle = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-torch.arange(0, 6, 2) / 6).double()
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
            torch.ones_like(angle), angle
        )
        return torch.view_as_real(turned).flatten(-2)

    def read(x: torch.Tensor, m: str) -> torch.Tensor:
        def project(name: str, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, s[f"{m}{name}.weight"], s[f"{m}{name}.bias"])

        query = project("query_proj.query_mlps.0", x).unflatten(-1, (2, 2, 4))
        keys = s[f"{m}keys"].view(2, 2, 6, 4)
        scores = torch.einsum("bthsd,hsnd->bthsn", query, keys)
        grid = (scores[..., 0, :, None] + scores[..., 1, None, :]).flatten(-2)
        best, where = grid.topk(3, -1)
        weight = best.softmax(-1)
        scale = torch.sigmoid(project("gating", x)) if memory.get("mem_gated") else 1.0
        if memory.get("peer_variant"):
            weight = weight * F.gelu((s[f"{m}values_u.weight"][where] * x[..., None, None, :]).sum(-1))
            return scale * (weight[..., None] * s[f"{m}values_v.weight"][where]).sum((2, 3))
        out = (weight[..., None] * s[f"{m}values.weight"][where]).sum((2, 3))
        if memory.get("swilu_projection", True):
            out = out * F.silu(project("swilu_projection", x))
        return scale * (project("value_proj", out) if f"{m}value_proj.weight" in s else out)

    x = s["tok_embeddings.weight"][IDS]
    for i in range(4):
        p = f"layers.{i}."
        h = norm(x, f"{p}attention_norm.weight")
        q, k, v = (
            (h @ s[f"{p}attention.{n}.weight"].T).unflatten(-1, (-1, 6)).transpose(1, 2) for n in ("wq", "wk", "wv")
        )
        q, k, v = rotate(q), rotate(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        grid = (q @ k.transpose(-1, -2) / math.sqrt(6)).masked_fill(
            torch.ones(10, 10, dtype=torch.bool).triu(1), -math.inf
        )
        x = x + (grid.softmax(-1) @ v).transpose(1, 2).flatten(2) @ s[f"{p}attention.wo.weight"].T
        h, m = norm(x, f"{p}ffn_norm.weight"), f"{p}feed_forward."
        if f"{m}keys" in s:
            x = x + read(h, m)
        else:
            x = x + (F.silu(h @ s[f"{m}w1.weight"].T) * (h @ s[f"{m}w3.weight"].T)) @ s[f"{m}w2.weight"].T
    return norm(x, "norm.weight") @ s["output.weight"].T


def write(directory: Path, config: dict[str, Any], state: State, form: str = "pth") -> Path:
    directory.mkdir()
    (directory / "params.json").write_text(json.dumps(config))
    content = {"model": state, "optim": {"state": {name: torch.zeros(3) for name in state}}}
    if form == "dcp":
        dcp.save(content, checkpoint_id=directory, no_dist=True)
    else:
        (directory / "consolidated").mkdir()
        torch.save(content, directory / "consolidated" / "consolidated.pth")
    return directory


@pytest.mark.parametrize(("form", "biases"), [("pth", False), ("pth", True), ("dcp", True)])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_computes_what_the_source_computes(name: str, form: str, biases: bool, tmp_path: Path) -> None:
    memory = VARIANTS[name]
    state = make_state(memory, biases)
    summary = import_checkpoint(write(tmp_path / "source", params(**memory), state, form), tmp_path / "out")
    assert "the memory replaces the FFN of blocks 1, 3" in summary["warnings"]
    spec = ModelSpec.load(tmp_path / "out")
    assert spec.decoder.ffn_widths == (WIDTH, 0, WIDTH, 0)
    assert [layer.query_bias for layer in spec.memory] == [biases, biases]
    with torch.no_grad():
        found = ultramem_deploy.load(tmp_path / "out")(IDS)
    assert (found - forward(state, memory)).abs().max() < 1e-4


def test_a_shared_table_may_lie_under_the_first_layer_alone(tmp_path: Path) -> None:
    state = make_state({})
    del state["layers.3.feed_forward.values.weight"]
    assert plan_import(write(tmp_path / "source", params(), state)).tensors["tables.shared.values"].shape == (36, 24)


def test_copies_of_a_shared_table_that_differ(tmp_path: Path) -> None:
    state = make_state({"mem_share_values": False})
    with pytest.raises(InputError, match="differs from .* though mem_share_values is true"):
        plan_import(write(tmp_path / "source", params(), state))


def test_a_bias_of_zeros_is_left_out_of_its_layer_alone(tmp_path: Path) -> None:
    state = make_state({}, biases=True)
    state["layers.1.feed_forward.value_proj.bias"].zero_()
    spec = plan_import(write(tmp_path / "source", params(), state)).spec
    assert [layer.output_bias for layer in spec.memory] == [False, True]


def test_what_cannot_be_expressed_is_listed(tmp_path: Path) -> None:
    config = params(mem_gated=1, mem_v_dim=0, layers="a", mem_knn=0, hash=1)
    config["model"] |= {"sliding_window": 8, "n_heads": "x", "rope": 1}
    with pytest.raises(ConfigError) as caught:
        plan_import(write(tmp_path / "source", config, {}))
    text = str(caught.value)
    for key in ("mem_gated", "mem_v_dim", "layers", "mem_knn", "hash", "sliding_window", "n_heads", "rope"):
        assert key in text


def test_params_without_memory_are_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this one has no productkey_args"):
        plan_import(write(tmp_path / "source", {"dim": 3}, {}))


def test_plain_product_keys_are_pkm(tmp_path: Path) -> None:
    config = params(swilu_projection=False)
    source = write(tmp_path / "plain", config, make_state(config["model"]["productkey_args"]))
    plan = plan_import(source)
    assert plan.family == plan.spec.source_family == "pkm"
    assert plan_import(source, "meta-memory").family == "meta-memory"
    other = write(tmp_path / "other", params(), make_state(MEMORY))
    assert plan_import(other).family == "meta-memory"
    with pytest.raises(InputError, match="pkm expects swilu_projection false .*--from meta-memory"):
        plan_import(other, "pkm")
