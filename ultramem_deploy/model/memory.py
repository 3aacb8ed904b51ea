"""One memory layer that covers UltraMem v1 and v2, Memory+ and PKM (spec §2 and §3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..layout import SELECTION_BIAS, table_layout
from ..ops import native
from ..ops.native_linear import linear
from ..ops.sparse_gate import ACTIVATIONS, sparse_gate
from ..ops.sparse_lookup import sparse_lookup
from ..ops.tucker_topk import tucker_topk
from ..spec import MemoryLayerSpec, ModelSpec, RoutingSpec, TableSpec
from .linear import Linear
from .norms import Norm
from .routing import LEAST, NEVER, choose, router_logits

CHUNK_BYTES = 64 << 20


class ValueTable(nn.Module):
    """A value table [N, D] and, for gated memories, its pre-values [N, P]; layers may share one.

    A quantised table holds codes and scales as `layout.table_layout` describes them, as buffers: nothing trains them.
    """

    values: torch.Tensor
    pre_values: torch.Tensor | None
    values_scales: torch.Tensor | None
    pre_values_scales: torch.Tensor | None

    def __init__(self, spec: TableSpec, cores: int = 1) -> None:
        super().__init__()
        layout = table_layout(spec, cores)
        for name in ("values", "pre_values", "values_scales", "pre_values_scales"):
            tensor = layout.get(name)
            if tensor is None:
                self.register_buffer(name, None)
            elif tensor.dtype is None:
                self.register_parameter(name, nn.Parameter(torch.empty(tensor.shape)))
            else:
                self.register_buffer(name, torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)))


@dataclass(frozen=True)
class Choice:
    """What one memory layer will look up for T tokens of one chunk: `hidden` [T, d] is what the layer read.

    raw [T,K,M] before any softmax or gate; indices [T,K]; weights [T,K,M] before any gate; addresses [T,K].
    """

    hidden: torch.Tensor
    raw: torch.Tensor
    indices: torch.Tensor
    weights: torch.Tensor
    addresses: torch.Tensor


@dataclass(frozen=True)
class Retrieval:
    """What one memory layer chose for T tokens; handed to an observer.

    row_scores, col_scores [T,H,R,n]; scores [T,K,M] before any softmax or gate; indices [T,K]; output [T,d].
    """

    row_scores: torch.Tensor
    col_scores: torch.Tensor
    scores: torch.Tensor
    indices: torch.Tensor
    output: torch.Tensor


class MemoryLayer(nn.Module):
    """Maps a hidden state [T, d] to the memory's output [T, d]; tensors as in `layout.memory_layout`."""

    u: torch.Tensor
    v: torch.Tensor
    shuffle: torch.Tensor

    def __init__(self, layer: MemoryLayerSpec, model: ModelSpec) -> None:
        super().__init__()
        hidden, table = model.decoder.hidden_size, model.tables[layer.table]
        rank = layer.key_rank
        self.spec, self.table_spec, self.hidden_size = layer, table, hidden
        self.observer: Callable[[Retrieval], None] | None = None
        self._held_keys: dict[str, tuple[object, list[torch.Tensor], torch.Tensor]] = {}
        if layer.scoring != "signed":
            self.row_keys = nn.Parameter(torch.empty(layer.heads, rank, layer.row_keys, layer.key_width))
        if not layer.reads_hidden:
            self.query = Linear(hidden, layer.query_heads * 2 * layer.key_width, bias=layer.query_bias)
        self.query_norm = Norm(layer.query_norm, layer.key_width) if layer.query_norm else None
        self.key_norm = Norm(layer.key_norm, layer.key_width) if layer.key_norm else None
        self.col_keys = nn.Parameter(torch.empty(layer.heads, rank, layer.col_keys, layer.key_width))
        if layer.rank_one_keys:
            self.row_rank_one = nn.Parameter(torch.empty(layer.heads, layer.row_keys, layer.key_width))
            self.col_rank_one = nn.Parameter(torch.empty(layer.heads, layer.col_keys, layer.key_width))
        if layer.scoring == "tucker":
            self.core = nn.Parameter(torch.empty(layer.cores, layer.heads, rank, rank))
            self.register_buffer("u", torch.empty(layer.heads, rank))
            self.register_buffer("v", torch.empty(layer.heads, rank))
        if layer.shuffle:
            self.register_buffer("shuffle", torch.empty(layer.virtual_slots, dtype=torch.int64))
        if layer.routing:
            bias = nn.Parameter(torch.zeros(layer.row_keys)) if layer.routing.selection_bias else None
            self.register_parameter(SELECTION_BIAS, bias)
            self.col_bias = nn.Parameter(torch.zeros(layer.col_keys))
        if table.pre_value_width and not layer.reads_hidden:
            width = table.pre_value_width // (2 if layer.gate_activation == "swiglu" else 1)
            self.pre_query = Linear(hidden, width, bias=False)
        if layer.output_gate:
            self.output_gate = Linear(hidden, table.value_width, bias=layer.output_gate_bias)
        if not layer.expanded:
            self.output = Linear(layer.output_blocks * table.value_width, hidden, bias=layer.output_bias)
        if layer.token_gate:
            self.token_gate = Linear(hidden, 1)

    def forward(self, hidden: torch.Tensor, table: ValueTable) -> torch.Tensor:
        """hidden [T, d] -> [T, d]; runs over tokens in chunks so that no intermediate exceeds about 64 MiB."""
        # A selection hangs on the last bits of its scores: whoever trains in mixed precision gets them whole.
        with _whole_precision(hidden.device.type):
            parts = [self._look_up(self._choose(part), table) for part in self._chunks(hidden)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def choose(self, hidden: torch.Tensor, table: ValueTable) -> list[Choice]:
        """The first half of `forward`, chunk by chunk: asks for the rows that the second half will read."""
        with _whole_precision(hidden.device.type):
            choices = []
            for part in self._chunks(hidden):
                choices.append(self._choose(part))
                self._ask_ahead(choices[-1].addresses, table)
        return choices

    def look_up(self, choices: list[Choice], table: ValueTable) -> torch.Tensor:
        """The second half of `forward`: the same output, to the bit."""
        with _whole_precision(choices[0].hidden.device.type):
            return torch.cat([self._look_up(choice, table) for choice in choices])

    def _chunks(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Folded keys are float32 whatever the weights are.
        hidden = hidden.to(self.col_keys.dtype if self.spec.reads_hidden else self.query.weight.dtype)
        most = self.chunk_tokens
        return (hidden,) if len(hidden) <= most else torch.split(hidden, most)

    def _ask_ahead(self, addresses: torch.Tensor, table: ValueTable) -> None:
        if table.pre_values is not None:
            native.ask_ahead(table.pre_values, addresses)
        # Which of these values are kept is known after the gate.
        if self.spec.kept_values is None:
            native.ask_ahead(table.values, addresses)

    @torch.no_grad()
    def follow_core(self) -> None:
        """Set u, v to the rank-1 approximation of the summed core, each signed like the last one (spec §2).

        Training calls it after every change of a core; a core must be finite.
        """
        left, _, right = torch.linalg.svd(self.core.float().sum(0))
        u, v = left[..., 0], right[..., 0, :]
        kept = (u * self.u).sum(-1, keepdim=True) + (v * self.v).sum(-1, keepdim=True)
        sign = torch.where(kept < 0, -1.0, 1.0)
        self.u.copy_(u * sign)
        self.v.copy_(v * sign)

    @property
    def chunk_tokens(self) -> int:
        """Tokens whose key scores, gathered keys and candidate grid fit in `CHUNK_BYTES`."""
        s = self.spec
        keys, grid = s.row_keys + s.col_keys, min(s.top_m, s.row_keys) * min(s.top_m, s.col_keys)
        scores = keys + 2 * s.rank * s.top_m * s.key_width if s.rank_one_keys else s.rank * keys
        return max(1, CHUNK_BYTES // (4 * s.heads * (scores + s.cores * grid)))

    def _choose(self, hidden: torch.Tensor) -> Choice:
        raw, indices = self.retrieve(hidden)
        weights = self._routed_weights(hidden, indices) if self.spec.routing else self.weights(raw, indices)
        return Choice(hidden, raw, indices, weights, self.addresses(indices))

    def _look_up(self, c: Choice, table: ValueTable) -> torch.Tensor:
        out = self.combine(table, c.hidden, c.weights, c.addresses)
        if self.observer is not None:
            self.observer(Retrieval(*self.key_scores(c.hidden), c.raw, c.indices, out))
        return out

    def retrieve(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [T, d] -> scores [T,K,M] before any gate, virtual indices [T,K]."""
        s, factors = self.spec, self.factors(hidden.device)
        if not s.rank_one_keys:
            found: tuple[torch.Tensor, torch.Tensor] = tucker_topk(*self.key_scores(hidden), *factors, s.top_m)
            return found
        query = self._queries(hidden)
        rows, row = _candidates(query[:, :, 0], self.row_rank_one, self.row_keys, s.top_m)
        cols, col = _candidates(query[:, :, 1], self.col_rank_one, self.col_keys, s.top_m)
        # Every candidate that is left passes stage 1 of the operator: it keeps top_m a side.
        raw, among = tucker_topk(row, col, *factors, s.top_m)
        pair = among.view(len(among), s.heads, s.top_m)
        kept_rows, kept_cols = rows.gather(2, pair // cols.shape[2]), cols.gather(2, pair % cols.shape[2])
        return raw, (kept_rows * s.col_keys + kept_cols).flatten(1)

    def combine(
        self, table: ValueTable, hidden: torch.Tensor, scores: torch.Tensor, addresses: torch.Tensor
    ) -> torch.Tensor:
        """The output [T, d] of `hidden` [T, d]: weights [T,K,M] at addresses [T,K] (block*rows + row) of `table`."""
        if table.pre_values is not None:
            x = (hidden if self.spec.reads_hidden else self.pre_query(hidden)).float()
            activation = ACTIVATIONS.index(self.spec.gate_activation)
            gate = sparse_gate(table.pre_values, addresses, x, activation, table.pre_values_scales)
            scores = scores * gate[..., None]
        if self.spec.kept_values is not None:
            best = scores[..., 0].abs().topk(self.spec.kept_values, dim=1).indices
            addresses, scores = addresses.gather(1, best), scores.gather(1, best[..., None])
        return self._project(self._lookup(table, addresses, scores), hidden)

    def key_scores(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column scores [T, H, R, n], float32; additive keys become rank 2: [s, 1] and [1, s]."""
        s = self.spec
        if s.routing:
            col = (linear(hidden, self.col_keys[0, 0], dtype=torch.float32) + self.col_bias.float())[:, None, None]
            chosen, weights = self._routed(s.routing, hidden)
            row = torch.full((len(hidden), s.row_keys), NEVER, device=hidden.device)
            # A logarithm, so that a sum with a column's score ranks a product of weight and activity.
            return _rank_two(row.scatter(1, chosen, weights.clamp(min=LEAST).log())[:, None, None], col)
        if s.scoring == "signed":
            col = self._side_scores(hidden[:, None], "col_keys")
            return self._signs(col.device).expand(len(col), -1, -1, -1), col
        query = self._queries(hidden)
        row = self._side_scores(query[:, :, 0], "row_keys")
        col = self._side_scores(query[:, :, 1], "col_keys")
        if s.scoring == "tucker":
            return row, col
        return _rank_two(row, col)

    def _routed(self, routing: RoutingSpec, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows int64 [T, k] that the router chooses, and their weights float32 [T, k]."""
        logits = router_logits(routing, hidden, self.row_keys[0, 0])
        return choose(routing, logits, getattr(self, SELECTION_BIAS))

    def _routed_weights(self, hidden: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """[T, K, 1]: the weight of each slot's row."""
        s = self.spec
        if s.routing is None:
            raise ValueError("a layer without a router")
        chosen, weights = self._routed(s.routing, hidden)
        rows = torch.zeros(len(hidden), s.row_keys, device=hidden.device).scatter(1, chosen, weights)
        return rows.gather(1, indices // s.col_keys)[..., None]

    def _queries(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalised queries [T, query heads, 2, kdim]."""
        query: torch.Tensor = self.query(hidden).unflatten(-1, (self.spec.query_heads, 2, self.spec.key_width))
        return self.query_norm(query) if self.query_norm else query

    def _signs(self, device: torch.device) -> torch.Tensor:
        """Row scores [1, 1, R, 2R] of signed scoring: part r is +1 in row r and -1 in row R + r."""
        eye = torch.eye(self.spec.rank, device=device)
        return torch.cat([eye, -eye], dim=1)[None, None]

    def _scored_keys(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Keys [H, R, n, kdim] behind their norm, in `dtype`; what is made of them is kept until they or it change."""
        keys: torch.Tensor = getattr(self, name)
        if self.key_norm is None:
            if keys.dtype is dtype:
                return keys
            parameters: tuple[torch.Tensor, ...] = (keys,)
        else:
            parameters = (keys, *self.key_norm.parameters())
        traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        if torch.is_grad_enabled() or traced or any(p.is_inference() for p in parameters):
            return self._made_keys(keys, dtype)
        state = dtype, [(p.data_ptr(), p._version) for p in parameters]
        held = self._held_keys.get(name)
        if held is None or held[0] != state:
            # Their memory is held too: another tensor at the same place would be taken for them.
            origin = [p.detach() for p in parameters]
            held = self._held_keys[name] = state, origin, self._made_keys(keys, dtype)
        return held[2]

    def _made_keys(self, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        normed: torch.Tensor = self.key_norm(keys) if self.key_norm else keys
        return normed.to(dtype)

    def _side_scores(self, query: torch.Tensor, name: str) -> torch.Tensor:
        keys = self._scored_keys(name, query.dtype)
        if self.spec.query_heads == 1:
            flat = linear(query[:, 0], keys.flatten(0, 2), dtype=torch.float32)
            return flat.view(len(flat), *keys.shape[:3])
        return torch.einsum("thd,hrnd->thrn", query, keys).float()

    def factors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u, v [H, R] and the cores [M, H, R, R]; additive scoring is u = [1, 0], v = [0, 1], core = identity."""
        if self.spec.scoring == "tucker":
            return self.u.float(), self.v.float(), self.core.float()
        heads = self.spec.heads
        if self.spec.scoring == "signed":
            ones = torch.ones(1, self.spec.rank, device=device)
            return ones, ones, torch.eye(self.spec.rank, device=device)[None, None]
        eye = torch.eye(2, device=device)
        return eye[0].repeat(heads, 1), eye[1].repeat(heads, 1), eye.repeat(1, heads, 1, 1)

    def weights(self, raw: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Raw scores [T,K,M] of virtual slots [T,K] -> weights before any gate: softmax a head, the empty slot 0."""
        s = self.spec
        if s.score_function == "softmax":
            raw = F.softmax(raw.view(len(raw), s.heads, s.top_m, s.cores), dim=2).flatten(1, 2)
        if s.scoring == "signed":
            raw = torch.where((self._sigma(indices) < s.slots)[..., None], raw, -raw)
        if s.empty_slot is not None:
            raw = raw.masked_fill((self._sigma(indices) == s.empty_slot)[..., None], 0.0)
        return raw

    def _sigma(self, indices: torch.Tensor) -> torch.Tensor:
        # A folded shuffle is int32: half the bytes, and addresses are int64 all the same.
        return self.shuffle[indices].long() if self.spec.shuffle else indices

    def addresses(self, indices: torch.Tensor) -> torch.Tensor:
        """Virtual indices -> block*N + row (spec §3 and §5)."""
        s, rows = self.spec, self.table_spec.rows
        sigma = self._sigma(indices)
        # Remainders of int64 take no vector instruction: those that change nothing are left out.
        if s.output_blocks > 1 and s.slots == rows and not s.offset:
            return sigma
        row = sigma if s.virtual_slots == s.slots else sigma % s.slots
        if s.offset:
            row = row + s.offset
        if s.slots + s.offset > rows:
            row = row % rows
        return row if s.output_blocks == 1 else sigma // s.slots * rows + row

    def _lookup(self, table: ValueTable, addresses: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        s = self.spec
        if not s.expanded:
            values, scales = table.values, table.values_scales
            return sparse_lookup(values, addresses, scores, s.output_blocks, scales)
        # An expanded row is M rows of d numbers, one a core: the plain lookup on the same bytes, seen as [N*M, d].
        rows = table.values.view(len(table.values) * s.cores, -1)
        core = torch.arange(s.cores, device=addresses.device)
        spread = (addresses[..., None] * s.cores + core).flatten(1)
        return sparse_lookup(rows, spread, scores.flatten(1)[..., None], 1, table.values_scales)

    def _project(self, looked_up: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        if self.spec.output_gate:
            looked_up = looked_up * F.silu(self.output_gate(hidden)).float()
        out = looked_up if self.spec.expanded else self.output(looked_up.to(self.output.weight.dtype))
        return out * torch.sigmoid(self.token_gate(hidden)).to(out.dtype) if self.spec.token_gate else out


def _whole_precision(device: str) -> AbstractContextManager[object]:
    """Without mixed precision; entering it takes longer than looking whether there is any."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _rank_two(row: torch.Tensor, col: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Additive scores [T, H, 1, n] as [s, 1] and [1, s], whose Tucker score with the identity is their sum."""
    return F.pad(row, (0, 0, 0, 1), value=1.0), F.pad(col, (0, 0, 1, 0), value=1.0)


def _candidates(
    query: torch.Tensor, rank_one: torch.Tensor, keys: torch.Tensor, top_m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage 1 on rank-1 keys [H,n,kdim]: the keys kept, int64 [T,H,m], and their exact scores [T,H,R,m], float32.

    query [T, 1 or H, kdim]; keys [H,R,n,kdim], of which the rows kept alone are read.
    """
    heads, rank, count, _ = keys.shape
    query = query.expand(-1, heads, -1)
    first = torch.einsum("thd,hnd->thn", query, rank_one.to(query.dtype)).float()
    kept = first.topk(min(top_m, count), dim=2).indices
    starts = torch.arange(heads * rank, device=kept.device).view(heads, rank, 1) * count
    exact = keys.flatten(0, 2)[kept[:, :, None] + starts].to(query.dtype)
    return kept, torch.einsum("thd,thrmd->thrm", query, exact).float()
