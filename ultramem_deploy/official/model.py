"""A model of the official UltraMem training code: its sizes and switches (spec §6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..spec import NormSpec
from .placement import Placement

KINDS = ("ultramem_v1", "ultramem_v2", "memory_plus")
CORES = RANK = 2
HEADS_A_QUERY = 2


@dataclass(frozen=True)
class Official:
    """A model of the official code: sizes and switches under short names, the defaults resolved."""

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    clip_qkv: float | None
    rope_theta: float
    positions: int
    vocab: int
    embeddings: int
    tied: bool
    bias: bool
    norm_after: bool
    norm_kind: Any
    eps: float
    affine: bool
    qk_norm: bool
    qk_affine: bool
    norm_bias: bool
    knum: int = 1
    kdim: int = 1
    vdim: int = 1
    pre_vdim: int = 0
    knn: int = 1
    mem_heads: int = 1
    key_expand: int = 1
    value_expand: int = 1
    share_ratio: float = 1.0
    query_a_rank: bool = False
    glu_act: bool = False
    vertical: bool = False
    group: int = 1
    placements: tuple[Placement, ...] = field(default=())
    """One a memory layer of the checkpoint, those that the official code loses included."""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def decoder_norm(self) -> NormSpec:
        """The one norm of our decoder: affine where any of theirs is, the others then get weights of one."""
        affine = self.affine or (self.qk_norm and self.qk_affine)
        return NormSpec(self.norm_kind, self.eps, affine, affine and self.norm_bias)

    @property
    def memory_norm(self) -> NormSpec:
        return NormSpec(self.norm_kind, self.eps, self.qk_affine, self.qk_affine and self.norm_bias)

    @property
    def table_rows(self) -> int:
        """Rows of one value table: the shared one in v2."""
        return self.knum**2 * (max(1, len(self.placements)) if self.kind == "ultramem_v2" else 1)

    @property
    def window(self) -> int:
        """K': keys a side before expansion, hence K'^2 slots a layer."""
        return int((self.table_rows * self.share_ratio) ** 0.5) if self.kind == "ultramem_v2" else self.knum

    @property
    def side(self) -> int:
        """Keys a side."""
        return self.window * {"ultramem_v1": 2, "ultramem_v2": self.key_expand, "memory_plus": 1}[self.kind]

    @property
    def query_rows(self) -> int:
        """Rows of the query projection as saved."""
        return 2 * self.kdim * self.mem_heads if self.kind == "memory_plus" else 2 * self.kdim * self.queries

    @property
    def queries(self) -> int:
        """Queries of UltraMem; each serves two heads."""
        return 2 if self.kind == "ultramem_v2" and self.query_a_rank else 1

    @property
    def padding(self) -> int | None:
        """The shuffled index that vertical parallel takes for padding: the number of values, None if no slot has it."""
        return self.table_rows if self.vertical and self.side**2 > self.table_rows else None

    @property
    def blocks(self) -> int:
        """E: virtual blocks."""
        return {"ultramem_v1": 4, "ultramem_v2": self.key_expand**2, "memory_plus": 1}[self.kind]
