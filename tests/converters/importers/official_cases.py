"""Random checkpoints in the official layout, its shapes spelled out apart from the code under test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

State = dict[str, torch.Tensor]
BASE: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "mlp_hidden_size": 48,
    "weight_tying": True,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "attention_layer_norm": True,
    "attention_layer_norm_with_affine": True,
    "include_bias": False,
    "rope": True,
    "max_sequence_length": 64,
    "vocab_size": 60,
    "embedding_size": 64,
    "mem_insert_way": "full",
    "mem_type": "ultramem_v1",
    "mem_knum": 8,
    "mem_kdim": 8,
    "mem_vdim": 16,
    "mem_knn": 4,
    "mem_head": 2,
    "mem_pre_vdim": 8,
}
V2 = {"mem_type": "ultramem_v2", "mem_q_for_each_tucker_rank": True}
PLUS = {"mem_type": "memory_plus", "mem_vdim": 32}


def make_config(**changes: Any) -> dict[str, Any]:
    """The `model:` section; a change to ... removes the key."""
    config = BASE | changes
    return {key: value for key, value in config.items() if value is not ...}


def make_state(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Weights under which every part changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    shapes = _shapes(config)
    for name, shape in shapes.items():
        if name.endswith("shuffle_index"):
            state[f"transformer.{name}"] = torch.randperm(shape[0], generator=generator)
            continue
        random = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight") or name == "ln_f.weight":
            random = 1 + 0.3 * random
        elif name.endswith(("tucker_core.0", "tucker_core.1", "tucker_core_u", "tucker_core_v")):
            random = random.abs() + 0.1
        elif len(shape) == 2 and "look_up" not in name:
            random = random * shape[1] ** -0.5
        state[f"transformer.{name}"] = random.to(dtype)
    return state


def _shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, size = c["d_model"], c["d_model"] // c["n_heads"]
    kv = c.get("n_kv_heads") or (1 if c.get("multi_query_attention") else c["n_heads"])
    width = c.get("mlp_hidden_size") or c["mlp_ratio"] * d
    bias = c["include_bias"]
    norm_bias = bias if c.get("bias_for_layer_norm") is None else c["bias_for_layer_norm"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (c["embedding_size"] or c["vocab_size"], d)}

    def linear(name: str, out: int, inner: int, own: bool = bias) -> None:
        shapes[f"{name}.weight"] = (out, inner)
        if own:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, n: int, affine: bool) -> None:
        if affine:
            shapes[f"{name}.weight"] = (n,)
            if norm_bias:
                shapes[f"{name}.bias"] = (n,)

    norm("ln_f", d, c["layer_norm_with_affine"])
    for i in range(c["n_layers"]):
        b = f"blocks.{i}."
        norm(b + "attn_norm", d, c["layer_norm_with_affine"])
        norm(b + "ff_norm", d, c["layer_norm_with_affine"])
        for one in ("q_norm", "k_norm") if c["attention_layer_norm"] else ():
            norm(b + one, size, c["attention_layer_norm_with_affine"])
        linear(b + "att_proj", d + 2 * kv * size, d)
        linear(b + "attn_out", d, d)
        linear(b + "ff_proj", width, d)
        linear(b + "ff_out", d, width // 2)
    if not c["weight_tying"]:
        linear("ff_out", shapes["wte.weight"][0], d)
    way = c["mem_insert_way"]
    count = c["n_layers"] if way == "full" else 0 if way == "no_mem" else len(way.split("/"))
    kind, heads, kdim, vdim, knum = (c[f"mem_{name}"] for name in ("type", "head", "kdim", "vdim", "knum"))
    expand = c.get("mem_key_expand_time", 1)
    window = int((knum**2 * count * c.get("mem_share_ratio", 1.0)) ** 0.5)
    side = {"ultramem_v1": 2 * knum, "ultramem_v2": expand * window, "memory_plus": knum}[kind]
    for i in range(count):
        m = f"mem_blocks.{i}."
        norm(m + "query_norm", kdim, c["attention_layer_norm_with_affine"])
        norm(m + "keys_norm", kdim, c["attention_layer_norm_with_affine"])
        rows = {"ultramem_v1": 2, "ultramem_v2": 4, "memory_plus": 2 * heads}[kind] * kdim
        linear(m + "query_proj", rows, d, False)
        wide = {"ultramem_v1": 4, "ultramem_v2": c.get("mem_value_expand_time", 1), "memory_plus": 1}[kind]
        linear(m + "values_proj", d, vdim * wide, False)
        if kind == "memory_plus":
            linear(m + "swilu_projection", vdim, d, False)
            shapes[m + "keys"] = (heads, 2, side, kdim)
            continue
        shapes[m + "keys"] = (heads, 2, side, kdim, 2)
        shapes[m + "shuffle_index"] = (side * side,)
        for one in "uv":
            shapes[f"{m}tucker_core_{one}"] = (1, heads, 1, 2)
        for core in (0, 1):
            shapes[f"{m}tucker_core.{core}"] = (heads, 2, 2)
        if kind == "ultramem_v1":
            shapes[m + "values_for_look_up"] = (knum**2, vdim)
        elif c["mem_pre_vdim"]:
            linear(m + "pre_values_proj", c["mem_pre_vdim"], d, False)
    if kind == "memory_plus" or (kind == "ultramem_v2" and count):
        rows = knum**2 * (count if kind == "ultramem_v2" else 1)
        shapes["full_memory_layer.values_for_look_up"] = (rows, vdim)
        if kind == "ultramem_v2" and c["mem_pre_vdim"]:
            shapes["full_memory_layer.pre_values_for_look_up"] = (rows, c["mem_pre_vdim"])
    return shapes


def write_config(directory: Path, config: dict[str, Any], section: bool = True) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    content = {"run_name": "test", "seed": 1, "model": config} if section else config
    (directory / "config.yaml").write_text(yaml.safe_dump(content))


def write_official(directory: Path, config: dict[str, Any], state: State | None = None) -> Path:
    """config.yaml and model.pt, or rank_{r}/model.pt of one vertical-parallel group where the config asks for it."""
    write_config(directory, config)
    state = make_state(config) if state is None else state
    if not config.get("vertical_parallel"):
        torch.save(state, directory / "model.pt")
        return directory
    for rank in range(config["mem_parallel_size"]):
        write_rank(directory, config, state, rank)
    return directory


def write_rank(directory: Path, config: dict[str, Any], state: State, rank: int) -> None:
    size = config["mem_parallel_size"]
    own = {
        name: tensor.chunk(size, 1)[rank % size].clone() if "full_memory_layer" in name else tensor
        for name, tensor in state.items()
    }
    (directory / f"rank_{rank}").mkdir()
    torch.save(own, directory / f"rank_{rank}" / "model.pt")
