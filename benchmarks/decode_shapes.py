"""The paper's shapes, random models on one arena of huge pages that all contenders share, and the bytes of a step."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from math import isqrt

import torch

from benchmarks.memory_model import decoder, memory_layer, model
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.model.decoder import UltraMemModel
from ultramem_deploy.planning.folds import ItemBytes, folded_spec, key_numbers, projection_numbers, token_bytes
from ultramem_deploy.spec import ModelSpec, TableSpec

HUGE_PAGE, ITEM = 2 << 20, 2
EXPERTS, ACTIVE = 34, 2
CHUNK = 1 << 23


@dataclass(frozen=True)
class Shape:
    """A model of P1 (E = 4, R = 2, two cores, two heads that share a query), or some of its layers.

    `inner` is the dense FFN's width, chosen for the paper's active parameters; an expert is half as wide. `whole` gives
    the blocks and memory layers of a model of which only `blocks` and `paths` are held: times, bytes and arithmetic of
    each part are multiplied by its count.
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
    experts: int = EXPERTS
    whole: tuple[int, int] | None = None

    def times(self, part: str) -> float:
        """How often the whole model has what is held of `part`."""
        if self.whole is None or part == "head":
            return 1.0
        return self.whole[1] / len(self.paths) if part == "memory" else self.whole[0] / self.blocks

    @property
    def held(self) -> str:
        """What is timed, in words."""
        if self.whole is None:
            return "the whole model"
        blocks, layers = self.whole
        return (
            f"{self.blocks} of {blocks} blocks and {len(self.paths)} of {layers} memory layers, each part's time times "
            f"{self.times('ffn'):.4g} and {self.times('memory'):.4g}; the head in full"
        )

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
        unfolded = self.unfolded()
        whole = folded_spec(unfolded, ["expand"] * len(self.paths))
        numbers = sum(t.rows * (t.value_width + t.pre_value_width) for t in unfolded.tables.values())
        width = 2 * self.hidden + next(iter(unfolded.tables.values())).pre_value_width
        rows = numbers // len(self.paths) // width
        return replace(whole, tables={name: replace(t, rows=rows) for name, t in whole.tables.items()})

    @property
    def expert_width(self) -> int:
        return self.inner // ACTIVE

    @property
    def expert_numbers(self) -> int:
        return 3 * self.expert_width * self.hidden

    def arena_bytes(self) -> int:
        """Of the decoder, and of the experts or the memory, whichever is larger."""
        experts = self.blocks * self.experts * (self.expert_numbers + self.hidden)
        return ITEM * (_numbers(self.dense()) + max(experts, _numbers(self.unfolded()) - _numbers(self.dense())))


class GatedShape(Shape):
    """A model of P2: a memory layer with a pre-value gate in every block, windows of one table that all layers share.

    `side`² slots a layer are stored; its window is half the table (mem_share_ratio 0.5), one head, no virtual blocks.
    """

    def unfolded(self) -> ModelSpec:
        window, rows = isqrt(self.side**2 * self.blocks // 2), self.side**2 * self.blocks
        layers = [
            replace(
                memory_layer(window, window, 1, self.top_m, self.key_width, shuffle=True),
                kind="ultramem_v2", heads=1, read_block=read, write_block=write, offset=i * self.side**2,
            )
            for i, (read, write) in enumerate(self.paths)
        ]  # fmt: skip
        whole = model(self.dense().decoder, layers, self.value_width)
        return replace(whole, tables={"t": TableSpec(rows, self.value_width, self.value_width)})


WHOLE = Shape("151M", 1024, 16, 2736, 50304, 12, ((2, 4), (5, 7), (8, 10)), 16, 256, 1100, 512)
LARGER: tuple[Shape, ...] = (
    Shape("680M", 1536, 16, 4096, 50304, 6, ((2, 4),), 35, 384, 1632, 768, whole=(24, 4)),
    Shape("1.6B", 2048, 16, 5456, 50304, 3, ((0, 2),), 42, 512, 1792, 1024, whole=(32, 6)),
    # As many experts as give the mixture the parameters of the memory model.
    GatedShape("227M/1.2B", 768, 12, 2496, 50304, 20, tuple((i, i) for i in range(20)), 32, 192, 360, 192, experts=20),
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
        reached = shape.experts * (1 - (1 - ACTIVE / shape.experts) ** batch)
        ffn = shape.blocks * (reached * shape.expert_numbers + shape.experts * d.hidden_size) * ITEM
    spec = _described(shape, kind)
    parts = {
        "projections": shape.blocks * 4 * d.hidden_size**2 * ITEM,
        "kv": 2 * shape.blocks * batch * kv * d.hidden_size * ITEM,
        "ffn": ffn,
        "memory": sum(_memory_bytes(spec, i, batch) for i in range(len(spec.memory))),
        "head": d.vocab_size * d.hidden_size * ITEM,
    }
    return {part: shape.times(part) * count for part, count in parts.items()}


def step_flops(shape: Shape, kind: str, batch: int, kv: int) -> dict[str, float]:
    """Multiplications and additions of a step's products, by part; experts do as many as the FFNs."""
    spec, d = _described(shape, kind), shape.hidden
    numbers = {
        "projections": shape.blocks * 4 * d**2,
        "kv": 2 * shape.blocks * kv * d,
        "ffn": shape.blocks * 3 * d * shape.inner,
        "memory": sum(_memory_numbers(spec, i) for i in range(len(spec.memory))),
        "head": shape.vocab * d,
    }
    return {part: 2 * batch * shape.times(part) * count for part, count in numbers.items()}


def _described(shape: Shape, kind: str) -> ModelSpec:
    return {"unfolded": shape.unfolded, "folded": shape.folded}.get(kind, shape.dense)()


def _query_numbers(spec: ModelSpec, index: int) -> int:
    """Of the projections that make the query and, for a gate, the pre-query."""
    layer = spec.memory[index]
    width = layer.query_heads * 2 * layer.key_width + spec.tables[layer.table].pre_value_width
    return width * spec.decoder.hidden_size


def _memory_numbers(spec: ModelSpec, index: int) -> int:
    """Weights of a layer's products: queries, keys, W_o."""
    layer = spec.memory[index]
    return _query_numbers(spec, index) + key_numbers(layer) + projection_numbers(layer, spec)


def _memory_bytes(spec: ModelSpec, index: int, batch: int) -> float:
    layer = spec.memory[index]
    output, shuffle = (0, 0) if layer.expanded else (ITEM, 8)
    items = ItemBytes(values=ITEM, pre_values=ITEM, output=output, keys=ITEM, shuffle=shuffle)
    return ITEM * _query_numbers(spec, index) + batch * token_bytes(layer, spec, items, batch)


def _numbers(spec: ModelSpec) -> int:
    layout = tensor_layout(spec)
    return sum(torch.Size(t.shape).numel() + 32 for name, t in layout.items() if not name.endswith(".shuffle"))
