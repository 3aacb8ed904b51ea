"""A memory layer in NumPy float64, written from the papers' formulas (spec sections 2 and 3) with none of the package's
code: tokens, heads, keys and values one at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, NormSpec

Tensors = dict[str, np.ndarray]
ACTIVATIONS = {
    "none": lambda a: a,
    "gelu": lambda a: 0.5 * a * (1 + math.erf(a / math.sqrt(2))),
    "silu": lambda a: a / (1 + math.exp(-a)),
}


@dataclass(frozen=True)
class Outcome:
    """output [T, d]; indices [T, K], best first within a head; margin [T], the smallest relative selection margin."""

    output: np.ndarray
    indices: np.ndarray
    margin: np.ndarray


def norm(x: np.ndarray, spec: NormSpec | None, tensors: Tensors, name: str) -> np.ndarray:
    """RMSNorm or LayerNorm over the last axis."""
    if spec is None:
        return x
    centred = x - x.mean(-1, keepdims=True) if spec.kind == "layer" else x
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.eps)
    return scaled * tensors.get(f"{name}.weight", 1.0) + tensors.get(f"{name}.bias", 0.0)


def memory_layer(spec: ModelSpec, index: int, tensors: Tensors, hidden: np.ndarray) -> Outcome:
    """The layer `index` of `spec` on hidden states [T, d]; `tensors` as in the checkpoint."""
    prefix = f"memory.{index}."
    own = {n.removeprefix(prefix): t.astype(np.float64) for n, t in tensors.items() if n.startswith(prefix)}
    table = {n: t.astype(np.float64) for n, t in tensors.items() if n.startswith(f"tables.{spec.memory[index].table}.")}
    one = _Layer(spec, spec.memory[index], own, {n.rsplit(".", 1)[1]: t for n, t in table.items()})
    return one(hidden.astype(np.float64))


class _Layer:
    def __init__(self, model: ModelSpec, spec: MemoryLayerSpec, own: Tensors, table: Tensors) -> None:
        self.spec, self.own, self.table, self.hidden = spec, own, table, model.decoder.hidden_size
        if spec.scoring != "signed":
            self.row_keys = norm(own["row_keys"], spec.key_norm, own, "key_norm")
        self.col_keys = norm(own["col_keys"], spec.key_norm, own, "key_norm")

    def __call__(self, hidden: np.ndarray) -> Outcome:
        found = [self.token(x) for x in hidden]
        output, indices, margin = zip(*found, strict=True)
        return Outcome(np.stack(output), np.asarray(indices), np.asarray(margin))

    def token(self, x: np.ndarray) -> tuple[np.ndarray, list[int], float]:
        s = self.spec
        if s.scoring == "signed":
            chosen, margin = self.signed(x)
            return self.values(chosen, x), [virtual for virtual, _ in chosen], margin
        query = self.linear("query", x).reshape(s.query_heads, 2, s.key_width)
        query = norm(query, s.query_norm, self.own, "query_norm")
        picked: list[tuple[int, np.ndarray]] = []
        margins = []
        for head in range(s.heads):
            chosen, margin = self.head(head, query[head if s.query_heads > 1 else 0])
            picked += chosen
            margins.append(margin)
        return self.values(picked, x), [virtual for virtual, _ in picked], min(margins)

    def signed(self, x: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], float]:
        """The slots whose keys have the largest products with x; those with a negative one in the second block."""
        products = self.col_keys.reshape(-1, len(x)) @ x
        kept, margin = best(np.abs(products), self.spec.top_m)
        return [(n + self.spec.slots * (products[n] < 0), np.array([products[n]])) for n in kept], margin

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.own[f"{name}.weight"] @ x + self.own.get(f"{name}.bias", 0.0)

    def head(self, head: int, query: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], float]:
        """The kept (virtual index, score of every core), and the smallest margin of the three selections."""
        s = self.spec
        row = self.row_keys[head] @ query[0]
        col = self.col_keys[head] @ query[1]
        if s.scoring == "additive":
            a_row, a_col = row[0], col[0]
        else:
            a_row, a_col = self.own["u"][head] @ row, self.own["v"][head] @ col
        rows, first = best(a_row, min(s.top_m, s.row_keys))
        cols, second = best(a_col, min(s.top_m, s.col_keys))
        pairs = [(i, j) for i in rows for j in cols]
        scores = [self.pair(head, row, col, i, j) for i, j in pairs]
        kept, third = best(np.array([score.sum() for score in scores]), s.top_m)
        weights = np.stack([scores[q] for q in kept])
        if s.score_function == "softmax":
            weights = np.exp(weights - weights.max(0))
            weights = weights / weights.sum(0)
        virtual = [pairs[q][0] * s.col_keys + pairs[q][1] for q in kept]
        return list(zip(virtual, weights, strict=True)), min(first, second, third)

    def pair(self, head: int, row: np.ndarray, col: np.ndarray, i: int, j: int) -> np.ndarray:
        """[M]: row[:, i]^T C_c col[:, j] for every core c; s1 + s2 where scoring is additive."""
        if self.spec.scoring == "additive":
            return np.array([row[0, i] + col[0, j]])
        return np.array([row[:, i] @ core[head] @ col[:, j] for core in self.own["core"]])

    def values(self, picked: list[tuple[int, np.ndarray]], x: np.ndarray) -> np.ndarray:
        s, values = self.spec, self.table["values"]
        rows, width = values.shape
        blocks = np.zeros((s.blocks, width))
        weighted = []
        for virtual, score in picked:
            sigma = int(self.own["shuffle"][virtual]) if s.shuffle else virtual
            if sigma == s.empty_slot:
                continue
            block, slot = divmod(sigma, s.slots)
            row = (slot + s.offset) % rows
            weighted.append((block, row, score * self.gate(row, x)))
        if s.kept_values:
            weighted = sorted(weighted, key=lambda one: -abs(one[2][0]))[: s.kept_values]
        for block, row, weight in weighted:
            blocks[block] += np.repeat(weight, width // s.cores) * values[row]
        token_gate = 1 / (1 + np.exp(-self.linear("token_gate", x))) if s.token_gate else 1.0
        if s.expanded:
            return token_gate * blocks.sum(0).reshape(s.cores, self.hidden).sum(0)
        together = blocks.sum(0) if s.sum_blocks else blocks.reshape(-1)
        if s.output_gate:
            together = together * np.array([ACTIVATIONS["silu"](a) for a in self.linear("output_gate", x)])
        return token_gate * self.linear("output", together)

    def gate(self, row: int, x: np.ndarray) -> float:
        if "pre_values" not in self.table:
            return 1.0
        pre = self.table["pre_values"][row]
        query = x if self.spec.scoring == "signed" else self.own["pre_query.weight"] @ x
        if self.spec.gate_activation == "swiglu":
            half = len(query)
            return float(ACTIVATIONS["silu"](pre[:half] @ query) * (pre[half:] @ query))
        return float(ACTIVATIONS[self.spec.gate_activation](pre @ query))


def best(scores: np.ndarray, k: int) -> tuple[list[int], float]:
    """Positions of the k largest, best first, and the relative gap between the k-th and the next."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if k >= len(scores):
        return order, math.inf
    kept, dropped = scores[order[k - 1]], scores[order[k]]
    return order[:k], float((kept - dropped) / max(abs(kept), abs(dropped), 1e-300))
