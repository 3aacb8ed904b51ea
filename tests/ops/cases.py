"""Random problems for the operators: hypothesis draws the sizes, a seeded generator the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from ultramem_deploy.ops import Operator, sparse_gate, sparse_lookup, tucker_topk

TABLE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
ENCODINGS = ("float", "int8", "int4", "float8_e4m3")
LARGEST = {"int8": 127.0, "int4": 7.0, "float8_e4m3": 448.0}
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
        """The inputs as float64, addresses as they are, a quantised table decoded: what the formulas take."""
        exact = {n: x.numpy() if x.dtype == torch.int64 else x.double().numpy() for n, x in self.inputs.items()}
        if "scales" in exact:
            exact["table"] = decoded(self.inputs["table"]) * exact.pop("scales")[:, None]
        return exact

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and so of the floating-point output."""
        floats = [x.dtype for name, x in self.inputs.items() if name not in ("table", "addresses", "scales")]
        return floats[-1]


def decoded(table: torch.Tensor) -> np.ndarray:
    """The codes of a quantised table, float64."""
    if table.dtype != torch.uint8:
        return table.double().numpy()
    packed = table.numpy().astype(int)
    return np.stack([packed % 16 - 8, packed // 16 - 8], axis=2).reshape(len(packed), -1).astype(np.float64)


def quantised(values: torch.Tensor, encoding: str) -> dict[str, torch.Tensor]:
    """`table` [N, W] and `scales` [N] of float rows [N, D], D even for int4; no scales for "float"."""
    if encoding == "float":
        return {"table": values}
    scales = values.abs().amax(1).clamp(min=1e-6) / LARGEST[encoding]
    codes = values / scales[:, None]
    if encoding == "float8_e4m3":
        return {"table": codes.to(torch.float8_e4m3fn), "scales": scales}
    codes = codes.round().clamp(-LARGEST[encoding], LARGEST[encoding])
    if encoding == "int8":
        return {"table": codes.to(torch.int8), "scales": scales}
    nibbles = (codes + 8).to(torch.uint8).unflatten(1, (-1, 2))
    return {"table": nibbles[..., 0] + 16 * nibbles[..., 1], "scales": scales}


def stored(draw: st.DrawFn, values: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """A drawn way to store a table, and the encoding's number."""
    encoding = draw(
        st.sampled_from(ENCODINGS if values.shape[1] % 2 == 0 else tuple(e for e in ENCODINGS if e != "int4"))
    )
    table = quantised(values, encoding)
    if encoding == "float":
        table["table"] = values.to(draw(st.sampled_from(TABLE_TYPES)))
    return table, ENCODINGS.index(encoding)


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
    tables, encoding = stored(draw, table)
    inputs = {"table": tables["table"], "addresses": addresses, "scores": scores.to(draw(st.sampled_from(TYPES)))}
    return Case(sparse_lookup.OPERATOR, inputs | tables, {"blocks": blocks, "encoding": encoding})


def large_lookup(
    width: int, slots: int, blocks: int, cores: int, encoding: str, dtype: torch.dtype, activations: torch.dtype
) -> Case:
    """SparseLookup of sizes that hypothesis does not draw: 2 tokens, 5 rows."""
    table, scores = normal(width + slots, (5, width), (2, slots, cores))
    tables = quantised(table, encoding) | ({"table": table.to(dtype)} if encoding == "float" else {})
    addresses = torch.from_numpy(np.random.default_rng(slots).integers(0, 5 * blocks, (2, slots)))
    inputs = {"table": tables["table"], "addresses": addresses, "scores": scores.to(activations)} | tables
    return Case(sparse_lookup.OPERATOR, inputs, {"blocks": blocks, "encoding": ENCODINGS.index(encoding)})


@st.composite
def gates(draw: st.DrawFn) -> Case:
    """SparseGate with every activation; addresses run over several blocks, for the row is the address modulo N."""
    tokens, slots, rows, width = draw(TOKENS), draw(SLOTS), draw(st.integers(1, 12)), draw(st.integers(1, 150))
    activation, seed = draw(st.integers(0, 3)), draw(SEED)
    table, x = normal(seed, (rows, width * (2 if activation == 3 else 1)), (tokens, width))
    tables, encoding = stored(draw, table)
    inputs = {
        "table": tables["table"],
        "addresses": torch.from_numpy(np.random.default_rng(seed).integers(0, 4 * rows, (tokens, slots))),
        "x": x.to(draw(st.sampled_from(TYPES))),
    }
    return Case(sparse_gate.OPERATOR, inputs | tables, {"activation": activation, "encoding": encoding})


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
    if rank == 2 and draw(st.booleans()):
        _make_additive(numbers)
    dtype = draw(st.sampled_from(TYPES))
    names = [port.name for port in tucker_topk.OPERATOR.inputs]
    inputs = {name: x.to(dtype) for name, x in zip(names, numbers, strict=True)}
    return Case(tucker_topk.OPERATOR, inputs, {"k": k})


def _make_additive(numbers: list[torch.Tensor]) -> None:
    """Product keys: rows [s1, 1] and columns [1, s2], u = [1, 0], v = [0, 1], one core I and the others 0."""
    row, col, u, v, core = numbers
    row[:, :, 1], col[:, :, 0] = 1, 1
    u[:], v[:], core[:] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0
    core[0] = torch.eye(2)
