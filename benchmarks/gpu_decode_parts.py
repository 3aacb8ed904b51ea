"""The parts of a decoding step on a GPU over random bfloat16 weights: each an action that a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from benchmarks.decode_peers import activated, grouped, one_by_one
from benchmarks.decode_shapes import ACTIVE, EXPERTS, Shape
from ultramem_deploy.ops import sparse_lookup, tucker_topk

Action = Callable[[], object]
Parts = dict[str, Action]
BLOCKS, HEADS, RANK, CORES, INT8 = 4, 2, 2, 2, 1
SPARSE_PARTS = ("ffn", "memory.scores", "memory.retrieval", "memory.lookup", "memory.output")
TABLES = {"bfloat16": torch.bfloat16, "int8": torch.int8}


class Operators(Protocol):
    """What runs the memory's operators: `tools.cuda_library.CudaLibrary`, or `References`."""

    def tucker_topk(self, inputs: Mapping[str, torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]: ...

    def sparse_lookup(self, inputs: Mapping[str, torch.Tensor], blocks: int, encoding: int = 0) -> torch.Tensor: ...


class References:
    """The PyTorch references, for trying the benchmark out without the library."""

    def tucker_topk(self, inputs: Mapping[str, torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tucker_topk.reference(*(inputs[port.name] for port in tucker_topk.OPERATOR.inputs), k)

    def sparse_lookup(self, inputs: Mapping[str, torch.Tensor], blocks: int, encoding: int = 0) -> torch.Tensor:
        table, addresses, scores = (inputs[name] for name in ("table", "addresses", "scores"))
        return sparse_lookup.reference(table, addresses, scores, blocks, inputs.get("scales"))


@dataclass(frozen=True)
class Decoder:
    """What the memory's model and the experts' share: projections, output head, and the dense FFN of the one."""

    shape: Shape
    projections: torch.Tensor
    head: torch.Tensor

    @classmethod
    def random(cls, shape: Shape, device: str) -> Decoder:
        square = (shape.blocks, 4, shape.hidden, shape.hidden)
        return cls(shape, _random(square, device), _random((shape.vocab, shape.hidden), device))

    def parts(self, batch: int, kv: int) -> Parts:
        """Projections, attention over `kv` places a sequence, and the head, for one token of each of `batch`."""
        shape, device = self.shape, self.head.device.type
        x = _random((batch, shape.hidden), device)
        width = shape.hidden // shape.heads
        query = _random((batch, shape.heads, 1, width), device)
        cache = _random((shape.blocks, 2, batch, shape.heads, kv, width), device)
        return {
            "projections": lambda: [F.linear(x, weight) for block in self.projections for weight in block],
            "kv": lambda: [F.scaled_dot_product_attention(query, key, value) for key, value in cache],
            "head": lambda: F.linear(x, self.head),
        }


@dataclass(frozen=True)
class Memory:
    """Dense FFNs and memory layers, each over a table of its own, unfolded: their W_o and shuffle are read."""

    shape: Shape
    gate_up: torch.Tensor
    down: torch.Tensor
    layers: tuple[dict[str, torch.Tensor], ...]

    @classmethod
    def random(cls, shape: Shape, device: str, table: str) -> Memory:
        gate_up = _random((shape.blocks, 2 * shape.inner, shape.hidden), device)
        down = _random((shape.blocks, shape.hidden, shape.inner), device)
        return cls(shape, gate_up, down, tuple(_layer(shape, device, table) for _ in shape.paths))

    def parts(self, batch: int, operators: Operators) -> Parts:
        """The FFNs, and the memory layers by what they do."""
        shape, device = self.shape, self.down.device.type
        x = _random((batch, shape.hidden), device)
        looked_up = _random((batch, BLOCKS * shape.value_width), device)
        inputs, found = _retrieval(shape, device, batch), []
        for layer in self.layers:
            weights, indices = operators.tucker_topk(inputs, shape.top_m)
            found.append((layer, weights, layer["shuffle"][indices]))

        def scores() -> None:
            for layer in self.layers:
                query = F.linear(x, layer["query"]).view(batch, 2, shape.key_width).transpose(0, 1)
                (query @ layer["keys"].transpose(1, 2)).float()

        def retrieval() -> None:
            for layer in self.layers:
                layer["shuffle"][operators.tucker_topk(inputs, shape.top_m)[1]]

        def lookup() -> None:
            for layer, weights, addresses in found:
                tensors = {"addresses": addresses, "scores": weights, "table": layer["table"]}
                scales = {"scales": layer["scales"]} if "scales" in layer else {}
                operators.sparse_lookup(tensors | scales, BLOCKS, INT8 if scales else 0)

        return {
            "ffn": lambda: [
                F.linear(activated(F.linear(x, up)), down) for up, down in zip(self.gate_up, self.down, strict=True)
            ],
            "memory.scores": scores,
            "memory.retrieval": retrieval,
            "memory.lookup": lookup,
            "memory.output": lambda: [F.linear(looked_up, layer["output"]) for layer in self.layers],
        }


@dataclass(frozen=True)
class Experts:
    """2 of 34 experts in every block; the routing is made beforehand, which favours them."""

    shape: Shape
    gate_up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def random(cls, shape: Shape, device: str) -> Experts:
        gate_up = _random((shape.blocks, EXPERTS, 2 * shape.expert_width, shape.hidden), device)
        return cls(shape, gate_up, _random((shape.blocks, EXPERTS, shape.hidden, shape.expert_width), device))

    def products(self, batch: int) -> dict[str, Parts]:
        """The ways to multiply that are compared, each as the part "ffn"."""
        rows = _random((batch * ACTIVE, self.shape.hidden), self.down.device.type)
        counts = [self._counts(batch) for _ in range(self.shape.blocks)]
        on_device = [count.to(self.down.device) for count in counts]
        weights = list(zip(self.gate_up, self.down, strict=True))
        return {
            "grouped_mm": {"ffn": lambda: [grouped(rows, c, *w) for c, w in zip(on_device, weights, strict=True)]},
            "one GEMM an expert": {
                "ffn": lambda: [one_by_one(rows, c, *w) for c, w in zip(counts, weights, strict=True)]
            },
        }

    @staticmethod
    def _counts(batch: int) -> torch.Tensor:
        """Rows of each expert where every token chooses at random."""
        chosen = torch.rand(batch, EXPERTS).topk(ACTIVE).indices
        return torch.bincount(chosen.flatten(), minlength=EXPERTS)


def in_turn(*parts: Parts) -> Action:
    """A whole step: no byte stays in a cache from part to part, so their order does not matter."""

    def step() -> None:
        for actions in parts:
            for action in actions.values():
                action()

    return step


def _layer(shape: Shape, device: str, table: str) -> dict[str, torch.Tensor]:
    rows, keys = shape.side**2, 2 * shape.side
    layer = {
        "query": _random((2 * shape.key_width, shape.hidden), device),
        "keys": _random((2, HEADS * RANK * keys, shape.key_width), device),
        "shuffle": torch.randperm(BLOCKS * rows, device=device),
        "output": _random((shape.hidden, BLOCKS * shape.value_width), device),
    }
    if table == "int8":
        codes = torch.randint(-127, 128, (rows, shape.value_width), dtype=torch.int8, device=device)
        return layer | {"table": codes, "scales": torch.rand(rows, device=device)}
    return layer | {"table": _random((rows, shape.value_width), device)}


def _retrieval(shape: Shape, device: str, batch: int) -> dict[str, torch.Tensor]:
    sizes: dict[str, Any] = {
        "row_scores": (batch, HEADS, RANK, 2 * shape.side),
        "col_scores": (batch, HEADS, RANK, 2 * shape.side),
        "u": (HEADS, RANK),
        "v": (HEADS, RANK),
        "core": (CORES, HEADS, RANK, RANK),
    }
    return {name: torch.randn(size, device=device) for name, size in sizes.items()}


def _random(shape: tuple[int, ...], device: str) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=device).uniform_(-0.05, 0.05)
