"""The paper's shapes, random models on one arena of huge pages that all contenders share, and the bytes of a step."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace

import torch

from benchmarks.memory_model import decoder, memory_layer, model
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model.decoder import UltraMemModel
from ultramem_deploy.planning.folds import ItemBytes, folded_spec, token_bytes
from ultramem_deploy.spec import ModelSpec, TableSpec

HUGE_PAGE, ITEM = 2 << 20, 2
EXPERTS, ACTIVE = 34, 2
CHUNK = 1 << 23


@dataclass(frozen=True)
class Shape:
    """A model of P1 (E = 4, R = 2, two cores, two heads that share a query), or a slice of one.

    `inner` is the dense FFN's width, chosen for the paper's active parameters; an expert is half as wide. A slice keeps
    one memory layer, the blocks that go with it, and the same share of the vocabulary.
    """

    name: str
    hidden: int
    heads: int
    inner: int
    vocab: int
    blocks: int
    paths: tuple[tuple[int, int], ...]
    top_m: int
    key_width: int
    side: int
    value_width: int

    def dense(self) -> ModelSpec:
        return ModelSpec(decoder(self.hidden, self.blocks, self.heads, self.inner, self.vocab, 4096))

    def unfolded(self) -> ModelSpec:
        """A table of its own for each layer: `side`² physical slots, four times as many virtual ones."""
        layers = [
            memory_layer(
                2 * self.side, 2 * self.side, 4, self.top_m, self.key_width,
                read_block=read, write_block=write, table=f"t{i}", shuffle=True,
            )
            for i, (read, write) in enumerate(self.paths)
        ]  # fmt: skip
        tables = {layer.table: TableSpec(layer.slots, self.value_width) for layer in layers}
        return replace(model(self.dense().decoder, layers, self.value_width), tables=tables)

    def folded(self) -> ModelSpec:
        """Expanded, each table cut to the bytes of the unfolded one: addresses wrap, so a step reads as many rows."""
        whole = folded_spec(self.unfolded(), ["expand"] * len(self.paths))
        rows = self.side**2 * self.value_width // (2 * self.hidden)
        return replace(whole, tables={name: replace(t, rows=rows) for name, t in whole.tables.items()})

    @property
    def expert_width(self) -> int:
        return self.inner // ACTIVE

    @property
    def expert_numbers(self) -> int:
        return 3 * self.expert_width * self.hidden

    def arena_bytes(self) -> int:
        """Of the decoder, and of the experts or the memory, whichever is larger."""
        experts = self.blocks * EXPERTS * (self.expert_numbers + self.hidden)
        return ITEM * (_numbers(self.dense()) + max(experts, _numbers(self.unfolded()) - _numbers(self.dense())))


WHOLE = Shape("151M", 1024, 16, 2736, 50304, 12, ((2, 4), (5, 7), (8, 10)), 16, 256, 1100, 512)
SLICES = (
    Shape("680M, 6 of 24 blocks", 1536, 16, 4096, 12576, 6, ((2, 4),), 35, 384, 1632, 768),
    Shape("1.6B, 5 of 32 blocks", 2048, 16, 5456, 7860, 5, ((1, 3),), 42, 512, 1792, 1024),
)


class Arena:
    """`size` bytes of bfloat16 numbers in ±0.05 on huge pages, no two pages alike, handed out from the start."""

    def __init__(self, size: int) -> None:
        held = mmap.mmap(-1, size + 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(held, dtype=torch.bfloat16)
        self._numbers = whole[-whole.data_ptr() % HUGE_PAGE // ITEM :]
        block = ((torch.rand(CHUNK, generator=torch.Generator().manual_seed(0)) - 0.5) / 10).bfloat16()
        for i, part in enumerate(self._numbers.split(CHUNK)):
            part.copy_(block.roll(7 * i + 1)[: len(part)])
        self.used = 0

    def take(self, *shape: int) -> torch.Tensor:
        """The next numbers, in this shape."""
        start, count = self.used, torch.Size(shape).numel()
        if start + count > len(self._numbers):
            raise ValueError(f"arena: {start + count} numbers wanted, {len(self._numbers)} there")
        self.used = start + -(-count // 32) * 32
        return self._numbers[start : start + count].view(shape)


def build(spec: ModelSpec, arena: Arena) -> UltraMemModel:
    """A model of the arena's numbers from its start, the decoder first: models of one shape share its pages."""
    arena.used = 0
    layout = tensor_layout(spec)
    memory = ("memory.", "tables.")
    state = {}
    for name in sorted(layout, key=lambda name: name.startswith(memory)):
        shape = layout[name].shape
        if name.endswith("norm.weight"):
            state[name] = torch.ones(shape, dtype=torch.bfloat16)
        elif name.endswith(".shuffle"):
            state[name] = torch.randperm(shape[0])
        else:
            state[name] = arena.take(*shape)
    with torch.device("meta"):
        built = UltraMemModel(spec)
    built.load_state_dict(state, strict=True, assign=True)
    return built.requires_grad_(False).eval()


def step_bytes(shape: Shape, kind: str, batch: int, kv: int) -> dict[str, float]:
    """Bytes that one step of `batch` tokens must read, by part; experts are those that random routing reaches."""
    d = shape.dense().decoder
    ffn = shape.blocks * 3 * d.hidden_size * d.intermediate_size * ITEM
    if kind == "moe":
        reached = EXPERTS * (1 - (1 - ACTIVE / EXPERTS) ** batch)
        ffn = shape.blocks * (reached * shape.expert_numbers + EXPERTS * d.hidden_size) * ITEM
    spec = {"unfolded": shape.unfolded, "folded": shape.folded}.get(kind, shape.dense)()
    return {
        "projections": shape.blocks * 4 * d.hidden_size**2 * ITEM,
        "kv": 2 * shape.blocks * batch * kv * d.hidden_size * ITEM,
        "ffn": ffn,
        "memory": sum(_memory_bytes(spec, i, batch) for i in range(len(spec.memory))),
        "head": d.vocab_size * d.hidden_size * ITEM,
    }


def sparse(parts: dict[str, float]) -> float:
    """What stands for the FFNs: the FFNs or experts, and the memory."""
    return parts["ffn"] + parts["memory"]


def sparse_flops(shape: Shape, kind: str, batch: int) -> float:
    """Multiplications and additions of the products in what stands for the FFNs; experts do as many as the FFNs."""
    numbers = shape.blocks * 3 * shape.hidden * shape.inner
    spec = {"unfolded": shape.unfolded, "folded": shape.folded}.get(kind, shape.dense)()
    for layer in spec.memory:
        keys = layer.heads * layer.rank * (layer.row_keys + layer.col_keys) * layer.key_width
        output = 0 if layer.expanded else layer.blocks * shape.value_width * shape.hidden
        numbers += layer.query_heads * 2 * layer.key_width * shape.hidden + keys + output
    return 2 * batch * numbers


def _memory_bytes(spec: ModelSpec, index: int, batch: int) -> float:
    layer = spec.memory[index]
    output, shuffle = (0, 0) if layer.expanded else (ITEM, 8)
    items = ItemBytes(values=ITEM, pre_values=0, output=output, keys=ITEM, shuffle=shuffle)
    query = layer.query_heads * 2 * layer.key_width * spec.decoder.hidden_size * ITEM
    return query + batch * token_bytes(layer, spec, items, batch)


def _numbers(spec: ModelSpec) -> int:
    layout = tensor_layout(spec)
    return sum(torch.Size(t.shape).numel() + 32 for name, t in layout.items() if not name.endswith(".shuffle"))
