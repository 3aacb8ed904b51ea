"""Random problems for the operators: hypothesis draws the sizes, a seeded generator the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from ultramem_deploy.ops import Operator, sparse_gate, sparse_lookup, tucker_topk

TABLE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
TYPES = (torch.float32, torch.float16)
SLOTS = st.integers(0, 9)
TOKENS = st.integers(0, 4)
SEED = st.integers(0, 2**32 - 1)


@dataclass(frozen=True, repr=False)
class Case:
    """An operator with its inputs, in the operator's order, and its attributes."""

    operator: Operator
    inputs: dict[str, torch.Tensor]
    attributes: dict[str, int]

    def __repr__(self) -> str:
        inputs = ", ".join(f"{n} {x.dtype} {list(x.shape)}" for n, x in self.inputs.items())
        return f"{self.operator.name}({inputs}, {self.attributes})"

    def exact(self) -> dict[str, np.ndarray]:
        """The inputs as float64, addresses as they are: what the formulas take."""
        return {n: x.numpy() if x.dtype == torch.int64 else x.double().numpy() for n, x in self.inputs.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and so of the floating-point output."""
        return list(self.inputs.values())[-1].dtype


def normal(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Standard normal tensors."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@st.composite
def lookups(draw: st.DrawFn) -> Case:
    """SparseLookup with repeated addresses (few rows), odd widths, several blocks and cores."""
    tokens, slots, cores, blocks = draw(TOKENS), draw(SLOTS), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rows, width = draw(st.integers(1, 12)), cores * draw(st.integers(1, 90))
    seed = draw(SEED)
    table, scores = normal(seed, (rows, width), (tokens, slots, cores))
    addresses = torch.from_numpy(np.random.default_rng(seed).integers(0, rows * blocks, (tokens, slots)))
    inputs = {
        "table": table.to(draw(st.sampled_from(TABLE_TYPES))),
        "addresses": addresses,
        "scores": scores.to(draw(st.sampled_from(TYPES))),
    }
    return Case(sparse_lookup.OPERATOR, inputs, {"blocks": blocks})


@st.composite
def gates(draw: st.DrawFn) -> Case:
    """SparseGate with every activation; addresses run over several blocks, for the row is the address modulo N."""
    tokens, slots, rows, width = draw(TOKENS), draw(SLOTS), draw(st.integers(1, 12)), draw(st.integers(1, 150))
    activation, seed = draw(st.integers(0, 3)), draw(SEED)
    table, x = normal(seed, (rows, width * (2 if activation == 3 else 1)), (tokens, width))
    inputs = {
        "table": table.to(draw(st.sampled_from(TABLE_TYPES))),
        "addresses": torch.from_numpy(np.random.default_rng(seed).integers(0, 4 * rows, (tokens, slots))),
        "x": x.to(draw(st.sampled_from(TYPES))),
    }
    return Case(sparse_gate.OPERATOR, inputs, {"activation": activation})


@st.composite
def retrievals(draw: st.DrawFn) -> Case:
    """TuckerTopK on rectangular grids, k below, at and above n; small integers instead of normals make ties."""
    tokens, heads = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    rank, cores = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_row, n_col = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    k = draw(st.integers(1, 12).filter(lambda k: k <= min(k, n_row) * min(k, n_col)) | st.just(1))
    shapes = ((tokens, heads, rank, n_row), (tokens, heads, rank, n_col), (heads, rank), (heads, rank))
    numbers = normal(draw(SEED), *shapes, (cores, heads, rank, rank))
    if draw(st.booleans()):
        numbers = [x.round() for x in numbers]
    dtype = draw(st.sampled_from(TYPES))
    names = [port.name for port in tucker_topk.OPERATOR.inputs]
    inputs = {name: x.to(dtype) for name, x in zip(names, numbers, strict=True)}
    return Case(tucker_topk.OPERATOR, inputs, {"k": k})
