"""What the official code computes, from its own config and tensors (spec sections 2, 3 and 6): none of the package."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]
DEFAULTS: dict[str, Any] = {
    "n_kv_heads": None,
    "multi_query_attention": None,
    "clip_qkv": None,
    "rope_theta": 10000,
    "attention_layer_norm": False,
    "layer_norm_eps": 1e-5,
    "norm_after": False,
    "mem_share_ratio": 1.0,
    "mem_key_expand_time": 1,
    "mem_value_expand_time": 1,
    "mem_use_glu_act": False,
}


class Official:
    """A model as lists of tensors; every call takes token ids [B, S] and gives logits [B, S, embeddings], float64."""

    def __init__(self, config: dict[str, Any], state: State) -> None:
        self.c = DEFAULTS | config
        self.state = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}

    def get(self, name: str) -> torch.Tensor | None:
        return self.state.get(f"transformer.{name}")

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.state[f"transformer.{name}.weight"], self.get(f"{name}.bias"))

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.c["layer_norm_type"] != "rms":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["layer_norm_eps"])
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        c = self.c
        x = self.state["transformer.wte.weight"][ids]
        way, full = c["mem_insert_way"], c["mem_insert_way"] == "full"
        paths = [] if full or way == "no_mem" else [tuple(map(int, p.split(":"))) for p in way.split("/")]
        self.count = c["n_layers"] if full else len(paths)
        reads = {a: (b, i) for i, (a, b) in enumerate(paths)}
        due, pending = -1, x
        for block in range(c["n_layers"]):
            x, inner = self.block(x, block)
            if full:
                x = x + self.memory(inner, block)
                continue
            if block in reads:
                due, index = reads[block]
                pending = self.memory(inner, index)
            if due == block:
                x = x + pending
        x = self.norm(x, "ln_f")
        if c["weight_tying"]:
            return x @ self.state["transformer.wte.weight"].T
        return self.linear(x, "ff_out")

    def block(self, x: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        b, after = f"blocks.{index}.", self.c["norm_after"]
        attended = self.attention(x if after else self.norm(x, b + "attn_norm"), b)
        x = x + (self.norm(attended, b + "attn_norm") if after else attended)
        inner = x if after else self.norm(x, b + "ff_norm")
        up, gate = self.linear(inner, b + "ff_proj").chunk(2, -1)
        out = self.linear(F.silu(gate) * up, b + "ff_out")
        return x + (self.norm(out, b + "ff_norm") if after else out), inner

    def attention(self, x: torch.Tensor, b: str) -> torch.Tensor:
        c = self.c
        heads, size = c["n_heads"], c["d_model"] // c["n_heads"]
        kv = c["n_kv_heads"] or (1 if c["multi_query_attention"] else heads)
        fused = self.linear(x, b + "att_proj")
        if c["clip_qkv"]:
            fused = fused.clamp(-c["clip_qkv"], c["clip_qkv"])
        q, k, v = (
            t.unflatten(-1, (-1, size)).transpose(1, 2) for t in fused.split([heads * size, *[kv * size] * 2], -1)
        )
        if c["attention_layer_norm"]:
            q, k = self.norm(q, b + "q_norm"), self.norm(k, b + "k_norm")
        q, k = self.rotate(q), self.rotate(k)
        k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        return self.linear(out.transpose(1, 2).flatten(2), b + "attn_out")

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[-2])[:, None] * self.c["rope_theta"] ** (-torch.arange(half) / half)[None].double()
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def memory(self, x: torch.Tensor, index: int) -> torch.Tensor:
        flat = x.flatten(0, 1)
        kind = self.c["mem_type"]
        out = self.plus(flat, index) if kind == "memory_plus" else self.tucker(flat, index)
        return out.view(x.shape)

    def plus(self, x: torch.Tensor, index: int) -> torch.Tensor:
        c, m = self.c, f"mem_blocks.{index}."
        heads, k, width = c["mem_head"], c["mem_knn"], c["mem_kdim"]
        query = self.norm(self.linear(x, m + "query_proj").view(-1, heads, 2, width), m + "query_norm")
        keys = self.state[f"transformer.{m}keys"]
        scores = torch.einsum("thsd,hsnd->thsn", query, keys)
        grid = scores[:, :, 0, :, None] + scores[:, :, 1, None, :]  # every pair: the best k are those of two stages
        best, where = grid.flatten(2).topk(k, -1)
        weight = best.softmax(-1)
        values = self.state["transformer.full_memory_layer.values_for_look_up"]
        read = (weight[..., None] * values[where]).sum((1, 2))
        return self.linear(read * F.silu(self.linear(x, m + "swilu_projection")), m + "values_proj")

    def tucker(self, x: torch.Tensor, index: int) -> torch.Tensor:
        c, m = self.c, f"mem_blocks.{index}."
        v2, width, k = c["mem_type"] == "ultramem_v2", c["mem_kdim"], c["mem_knn"]
        keys = self.state[f"transformer.{m}keys"]
        keys = self.norm(keys.transpose(-1, -2), m + "keys_norm")  # [H, 2, n, R, kdim]
        query = self.norm(self.linear(x, m + "query_proj").view(len(x), -1, 2, width), m + "query_norm")
        heads, side = keys.shape[0], keys.shape[2]
        query = query[:, [h // 2 for h in range(heads)]]
        scores = torch.einsum("thsd,hsnrd->shtnr", query, keys)
        u, v = (self.state[f"transformer.{m}tucker_core_{one}"].view(heads, 1, 2) for one in "uv")
        cores = [self.state[f"transformer.{m}tucker_core.{i}"] for i in range(2)]
        found = []
        for h in range(heads):
            row, col = scores[0, h], scores[1, h]  # [T, n, R]
            rows, cols = (row * u[h]).sum(-1).topk(k).indices, (col * v[h]).sum(-1).topk(k).indices
            row, col = (torch.gather(s, 1, i[..., None].expand(-1, -1, 2)) for s, i in ((row, rows), (col, cols)))
            each = torch.stack([(row @ core[h] @ col.transpose(1, 2)).flatten(1) for core in cores], -1)
            best = each.sum(-1).topk(k).indices
            virtual = (rows[:, :, None] * side + cols[:, None, :]).flatten(1).gather(1, best)
            found.append((virtual, each.gather(1, best[..., None].expand(-1, -1, 2))))
        virtual, weight = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        sigma = self.state[f"transformer.{m}shuffle_index"][virtual]
        return self.values(x, m, index, sigma, weight) if v2 else self.expanded(m, sigma, weight)

    def expanded(self, m: str, sigma: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        table = self.state[f"transformer.{m}values_for_look_up"]
        parts = self.blocks(table, sigma // len(table), sigma % len(table), weight, 4)
        return self.linear(parts.flatten(1), m + "values_proj")

    def values(self, x: torch.Tensor, m: str, index: int, sigma: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        c = self.c
        table, pre = (self.get(f"full_memory_layer.{p}values_for_look_up") for p in ("", "pre_"))
        window = int((c["mem_knum"] ** 2 * self.count * c["mem_share_ratio"]) ** 0.5) ** 2
        row = (sigma % window + index * c["mem_knum"] ** 2) % len(table)
        if pre is not None:
            gate = (pre[row] * self.linear(x, m + "pre_values_proj")[:, None]).sum(-1)
            weight = weight * (F.gelu(gate) if c["mem_use_glu_act"] else gate)[..., None]
        if c.get("vertical_parallel"):
            weight = weight * (sigma != len(table))[..., None]
        count = c["mem_key_expand_time"] ** 2
        parts = self.blocks(table, sigma // window, row, weight, count)
        return self.linear(parts.sum(1) if c["mem_value_expand_time"] == 1 else parts.flatten(1), m + "values_proj")

    def blocks(
        self, table: torch.Tensor, block: torch.Tensor, row: torch.Tensor, weight: torch.Tensor, count: int
    ) -> torch.Tensor:
        """[T, count, D]: core 0 weighs the first half of a row, core 1 the second."""
        rows = table[row].unflatten(-1, (2, -1)) * weight[..., None]
        hot = F.one_hot(block, count).double()
        return torch.einsum("tkb,tkd->tbd", hot, rows.flatten(2))
