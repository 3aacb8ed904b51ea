"""A memory layer as a graph: the operators of ai.ultramem between standard ones (model/memory.py is the reference)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...layout import SELECTION_BIAS, table_layout
from ...model.routing import LEAST, NEVER
from ...ops import DOMAIN
from ...ops.encoding import ENCODINGS
from ...ops.sparse_gate import ACTIVATIONS
from ...spec import MemoryLayerSpec, ModelSpec, RoutingSpec
from .attention import linear
from .dialect import Portable
from .routing import choose, router_logits, scattered


class MemoryGraph:
    """Adds memory layer `index` of a model to a graph."""

    def __init__(self, dialect: Portable, model: ModelSpec, index: int) -> None:
        self.dialect, self.graph, self.model, self.index = dialect, dialect.graph, model, index
        self.spec: MemoryLayerSpec = model.memory[index]
        self.table = model.tables[self.spec.table]
        self.prefix = f"memory.{index}"
        self._chosen = ("", "")

    def __call__(self, hidden: str) -> str:
        """hidden [T, d] -> [T, d], named memory.{i}.output; the choice is memory.{i}.scores and .indices."""
        s, g = self.spec, self.graph
        raw, indices = self._retrieve(hidden)
        sigma = self._sigma(indices)
        scores = self._routed_weights(hidden, indices) if s.routing else self._weights(raw, sigma)
        addresses = self._addresses(sigma)
        if self.table.pre_value_width:
            scores = g.op("Mul", scores, g.op("Unsqueeze", self._gate(hidden, addresses), g.constant([2])))
        if s.kept_values is not None:
            addresses, scores = self._largest(addresses, scores, s.kept_values)
        looked_up = self._lookup(addresses, scores)
        return g.op("Identity", self._project(looked_up, hidden), out=f"{self.prefix}.output")

    def _retrieve(self, hidden: str) -> tuple[str, str]:
        """Scores [T, K, M] before any gate and virtual indices [T, K]."""
        names = f"{self.prefix}.scores", f"{self.prefix}.indices"
        if not self.spec.rank_one_keys:
            raw, indices = self._top_k(*self._key_scores(hidden), names)
            return raw, indices
        query = self._queries(hidden)
        rows, row = self._candidates(query, 0)
        cols, col = self._candidates(query, 1)
        # Every candidate that is left passes stage 1 of the operator: it keeps top_m a side.
        raw, among = self._top_k(row, col, (names[0], f"{self.prefix}.pairs"))
        return raw, self._virtual(among, rows, cols, names[1])

    def _top_k(self, row: str, col: str, names: Sequence[str]) -> list[str]:
        factors = self._factors()
        return self.graph.ops(f"{DOMAIN}::TuckerTopK", 2, row, col, *factors, out=list(names), k=self.spec.top_m)

    def _queries(self, hidden: str) -> str:
        """[T, query heads, 2, kdim], normalised."""
        s = self.spec
        query = self._linear(hidden, "query", s.query_bias)
        query = self.graph.reshape(query, -1, s.query_heads, 2, s.key_width)
        if s.query_norm:
            query = self.dialect.norm(query, s.query_norm, f"{self.prefix}.query_norm", s.key_width)
        return query

    def _candidates(self, query: str, side: int) -> tuple[str, str]:
        """Stage 1 on rank-1 keys: the keys kept, int64 [T, H, m], and their exact scores [T, H, R, m]."""
        s, g = self.spec, self.graph
        n, name = (s.row_keys, s.col_keys)[side], ("row", "col")[side]
        m = min(s.top_m, n)
        first = g.reshape(self._side(query, side, f"{name}_rank_one", 1), -1, s.heads, n)
        kept = g.ops("TopK", 2, first, g.constant([m]), axis=-1)[1]
        starts = np.arange(s.heads * s.rank).reshape(s.heads, s.rank, 1) * n
        at = g.op("Add", g.op("Unsqueeze", kept, g.constant([2])), g.constant(starts))
        exact = g.op("Gather", g.weight(f"{self.prefix}.{name}_keys", (s.heads * s.rank * n, s.key_width)), at, axis=0)
        exact = g.reshape(exact, -1, s.heads, s.rank * m, s.key_width)
        own = g.op("Unsqueeze", g.op("Gather", query, g.constant(side), axis=2), g.constant([3]))
        return kept, g.reshape(g.op("MatMul", exact, own), -1, s.heads, s.rank, m)

    def _virtual(self, among: str, rows: str, cols: str, out: str) -> str:
        """Pairs of candidates [T, K] -> virtual indices [T, K]."""
        s, g = self.spec, self.graph
        width = g.constant(min(s.top_m, s.col_keys))
        pair = g.reshape(among, -1, s.heads, s.top_m)
        row = g.op("GatherElements", rows, g.op("Div", pair, width), axis=2)
        col = g.op("GatherElements", cols, g.op("Mod", pair, width), axis=2)
        virtual = g.op("Add", g.op("Mul", row, g.constant(s.col_keys)), col)
        return g.op("Reshape", virtual, g.constant([-1, s.taken]), out=out)

    def _key_scores(self, hidden: str) -> tuple[str, str]:
        """[T, H, R, n] of both sides; additive keys become rank 2: [s, 1] and [1, s]."""
        s, g = self.spec, self.graph
        names = [f"{self.prefix}.row_scores", f"{self.prefix}.col_scores"]
        if s.routing:
            return self._routed_scores(s.routing, hidden, names)
        if s.scoring == "signed":
            col = self._scored(hidden, "col_keys", s.rank, s.col_keys)
            return self._signs(col), g.op("Identity", col, out=f"{self.prefix}.col_scores")
        query = self._queries(hidden)
        sides = [(query, side, ("row_keys", "col_keys")[side], s.key_rank) for side in (0, 1)]
        if s.scoring == "tucker":
            return self._side(*sides[0], names[0]), self._side(*sides[1], names[1])
        return self._rank_two(self._side(*sides[0]), self._side(*sides[1]), names)

    def _rank_two(self, row: str, col: str, names: list[str]) -> tuple[str, str]:
        """Additive scores as [s, 1] and [1, s]."""
        g = self.graph
        row_ones, col_ones = self._ones(row), self._ones(col)
        return (
            g.op("Concat", row, row_ones, axis=2, out=names[0]),
            g.op("Concat", col_ones, col, axis=2, out=names[1]),
        )

    def _routed_scores(self, routing: RoutingSpec, hidden: str, names: list[str]) -> tuple[str, str]:
        """The logarithm of the weights of rows that the router chooses, far below elsewhere; columns by their keys."""
        s, g = self.spec, self.graph
        keys = g.weight(f"{self.prefix}.row_keys", (s.row_keys, s.key_width))
        logits = router_logits(self.dialect, hidden, keys)
        self._chosen = choose(self.dialect, routing, s.row_keys, logits, f"{self.prefix}.{SELECTION_BIAS}")
        chosen, weights = self._chosen
        ranked = g.op("Log", g.op("Max", weights, g.constant(LEAST, "float32")))
        row = scattered(self.dialect, logits, chosen, ranked, NEVER)
        col = self.dialect.linear(hidden, g.weight(f"{self.prefix}.col_keys", (s.col_keys, s.key_width)))
        col = g.op("Add", col, g.weight(f"{self.prefix}.col_bias"))
        return self._rank_two(g.reshape(row, -1, 1, 1, s.row_keys), g.reshape(col, -1, 1, 1, s.col_keys), names)

    def _routed_weights(self, hidden: str, indices: str) -> str:
        """[T, K, 1]: the weight of each slot's row."""
        s, g = self.spec, self.graph
        rows = g.op("Div", indices, g.constant(s.col_keys))
        like = g.op("Concat", g.size(hidden, 0), g.constant([s.row_keys]), axis=0)
        empty = g.op("Expand", g.constant(0.0, "float32"), like)
        weights = g.op("ScatterElements", empty, *self._chosen, axis=1)
        return g.op("Unsqueeze", g.op("GatherElements", weights, rows, axis=1), g.constant([2]))

    def _linear(self, x: str, name: str, bias: bool) -> str:
        return linear(self.dialect, x, f"{self.prefix}.{name}", bias)

    def _side(self, query: str, side: int, name: str, rank: int, out: str | None = None) -> str:
        """Scores [T, H, rank, n] of a side's queries with the keys `name`."""
        s, g = self.spec, self.graph
        n = (s.row_keys, s.col_keys)[side]
        queries = g.op("Gather", query, g.constant(side), axis=2)
        if s.query_heads == 1:
            return self._scored(g.reshape(queries, -1, s.key_width), name, rank, n, out)
        keys = self._keys(name, rank * n)
        per_head = self.dialect.matmul_transposed(g.op("Transpose", queries, perm=[1, 0, 2]), keys)
        tokens_first = g.op("Transpose", per_head, perm=[1, 0, 2])
        return g.op("Reshape", tokens_first, g.constant([-1, s.heads, rank, n]), out=out)

    def _scored(self, queries: str, name: str, rank: int, n: int, out: str | None = None) -> str:
        """[T, H, R, n] of one query a token, [T, kdim]."""
        flat = self.dialect.linear(queries, self._keys(name, rank * n))
        return self.graph.op("Reshape", flat, self.graph.constant([-1, self.spec.heads, rank, n]), out=out)

    def _signs(self, like: str) -> str:
        """Row scores [T, 1, R, 2R] of signed scoring: part r is +1 in row r and -1 in row R + r."""
        s, g = self.spec, self.graph
        eye = np.eye(s.rank)
        tokens = g.op("Shape", like, start=0, end=1)
        shape = g.op("Concat", tokens, g.constant([1, s.rank, s.row_keys]), axis=0)
        signs = g.constant(np.concatenate([eye, -eye], 1)[None, None], "float32")
        return g.op("Expand", signs, shape, out=f"{self.prefix}.row_scores")

    def _keys(self, name: str, per_head: int) -> str:
        """Keys of one side, [H*R*n, kdim] for a shared query, else [H, R*n, kdim]."""
        s = self.spec
        shape = (s.heads * per_head, s.key_width) if s.query_heads == 1 else (s.heads, per_head, s.key_width)
        source = f"export.{self.prefix}.{name}" if s.key_norm else f"{self.prefix}.{name}"
        return self.graph.weight(source, shape)

    def _ones(self, like: str) -> str:
        one = self.graph.constant([1.0], "float32")
        return self.graph.op("Expand", one, self.graph.op("Shape", like))

    def _factors(self) -> tuple[str, str, str]:
        """u, v and the cores; additive scoring is u = [1, 0], v = [0, 1], core = identity."""
        g, heads = self.graph, self.spec.heads
        if self.spec.scoring == "tucker":
            return g.weight(f"{self.prefix}.u"), g.weight(f"{self.prefix}.v"), g.weight(f"{self.prefix}.core")
        if self.spec.scoring == "signed":
            rank = self.spec.rank
            ones = g.constant(np.ones((1, rank)), "float32")
            return ones, ones, g.constant(np.eye(rank)[None, None], "float32")
        eye = np.eye(2)
        sides = [g.constant(np.tile(eye[i], (heads, 1)), "float32") for i in (0, 1)]
        return sides[0], sides[1], g.constant(np.tile(eye, (1, heads, 1, 1)), "float32")

    def _weights(self, raw: str, sigma: str) -> str:
        s, g = self.spec, self.graph
        if s.score_function == "softmax":
            soft = g.op("Softmax", g.reshape(raw, -1, s.heads, s.top_m, s.cores), axis=2)
            raw = g.reshape(soft, -1, s.taken, s.cores)
        if s.scoring == "signed":
            positive = g.op("Unsqueeze", g.op("Less", sigma, g.constant(s.slots)), g.constant([2]))
            raw = g.op("Where", positive, raw, g.op("Neg", raw))
        if s.empty_slot is None:
            return raw
        empty = g.op("Unsqueeze", g.op("Equal", sigma, g.constant(s.empty_slot)), g.constant([2]))
        return g.op("Where", empty, g.constant(0.0, "float32"), raw)

    def _sigma(self, indices: str) -> str:
        """Virtual indices -> physical positions, int64."""
        g, name = self.graph, f"{self.prefix}.shuffle"
        if not self.spec.shuffle:
            return indices
        sigma = g.op("Gather", g.stored(name), indices, axis=0)
        return sigma if g.dtype(name) == "int64" else g.cast(sigma, 7)

    def _addresses(self, sigma: str) -> str:
        """Physical positions -> block*N + row, int64; steps that change nothing are left out."""
        s, g, rows = self.spec, self.graph, self.table.rows
        row = g.op("Mod", sigma, g.constant(s.slots)) if s.blocks > 1 else sigma
        if s.offset:
            row = g.op("Add", row, g.constant(s.offset))
        if s.offset + s.slots > rows:
            row = g.op("Mod", row, g.constant(rows))
        if s.output_blocks == 1:
            return row
        block = g.op("Div", sigma, g.constant(s.slots))
        return g.op("Add", g.op("Mul", block, g.constant(rows)), row)

    def _gate(self, hidden: str, addresses: str) -> str:
        g = self.graph
        x = hidden if self.spec.reads_hidden else self._linear(hidden, "pre_query", False)
        table = g.stored(f"tables.{self.spec.table}.pre_values")
        activation = ACTIVATIONS.index(self.spec.gate_activation)
        scales, encoding = self._encoding("pre_values")
        return g.op(f"{DOMAIN}::SparseGate", table, addresses, x, *scales, activation=activation, **encoding)

    def _largest(self, addresses: str, scores: str, count: int) -> tuple[str, str]:
        """The `count` addresses [T, count] and weights [T, count, 1] of largest magnitude."""
        g = self.graph
        flat = g.reshape(scores, -1, self.spec.taken)
        best = g.ops("TopK", 2, g.op("Abs", flat), g.constant([count]), axis=1)[1]
        kept = g.op("GatherElements", flat, best, axis=1)
        return g.op("GatherElements", addresses, best, axis=1), g.reshape(kept, -1, count, 1)

    def _lookup(self, addresses: str, scores: str) -> str:
        s, g, name = self.spec, self.graph, f"tables.{self.spec.table}.values"
        lookup, (scales, encoding) = f"{DOMAIN}::SparseLookup", self._encoding("values")
        if not s.expanded:
            return g.op(lookup, g.stored(name), addresses, scores, *scales, blocks=s.output_blocks, **encoding)
        # An expanded row is M rows of d numbers, one a core: the plain lookup on the same bytes, seen as [N*M, d].
        columns = table_layout(self.table)["values"].shape[1] // s.cores
        table = g.stored(name, (self.table.rows * s.cores, columns))
        first = g.op("Unsqueeze", g.op("Mul", addresses, g.constant(s.cores)), g.constant([2]))
        spread = g.reshape(g.op("Add", first, g.constant(np.arange(s.cores))), -1, s.summed * s.cores)
        weights = g.reshape(scores, -1, s.summed * s.cores, 1)
        return g.op(lookup, table, spread, weights, *scales, blocks=1, **encoding)

    def _encoding(self, part: str) -> tuple[list[str], dict[str, Any]]:
        """What the operator that reads a table's `part` takes besides, where it is quantised: scales, the encoding."""
        if self.table.storage == "float":
            return [], {}
        scales = self.graph.stored(f"tables.{self.spec.table}.{part}_scales")
        return [scales], {"encoding": ENCODINGS.index(self.table.storage)}

    def _project(self, looked_up: str, hidden: str) -> str:
        s, g = self.spec, self.graph
        if s.output_gate:
            gate = self._linear(hidden, "output_gate", s.output_gate_bias)
            looked_up = g.op("Mul", looked_up, self.dialect.activation(gate, "silu"))
        out = looked_up if s.expanded else self._linear(looked_up, "output", s.output_bias)
        return g.op("Mul", out, g.op("Sigmoid", self._linear(hidden, "token_gate", True))) if s.token_gate else out
