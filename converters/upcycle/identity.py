"""Add UltraMem memory layers beside a dense model's FFNs without changing what it computes.

The output projection starts at zero, so the memory adds exactly 0 until it is trained (P2 keeps the FFN; zero
initialisation of a parallel branch is standard). Everything else is initialised as P1's published code does.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ultramem_deploy.checkpoint import TensorTask, numpy_dtype
from ultramem_deploy.checkpoint.writer import chunk_elements
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import memory_layout
from ultramem_deploy.option_problems import refuse
from ultramem_deploy.rank_one import rank_one as rank_one
from ultramem_deploy.spec import MemoryLayerSpec, ModelSpec, NormSpec, TableSpec

from .identity_options import CORES, IdentityOptions, path_pairs
from .identity_sizes import sized

RANK = 2
HEADS_A_QUERY = 2
SHARED = "shared"
VALUE_STD = 0.02
_NORM_POWER = {"ultramem_v1": -0.33, "ultramem_v2": -0.4}
_DRAWN = 1 << 18  # numbers that one generator draws


def parse_paths(paths: str, num_layers: int, layout: str = "v1") -> list[tuple[int, int]]:
    """Block pairs of "a:b/c:d" (spec §3, Placement). InputError where they are malformed or overlap."""
    if paths == "auto":
        return auto_paths(num_layers) if layout == "v1" else [(block, block) for block in range(num_layers)]
    try:
        return path_pairs(paths, num_layers)
    except ValueError as error:
        raise InputError(f"--paths: {error}") from None


def auto_paths(num_layers: int) -> list[tuple[int, int]]:
    """Up to three skip paths over the upper 60% of the blocks: the lower ones then need no gradient while healing."""
    first = num_layers * 2 // 5
    step = max(1, (num_layers - first) // 3)
    span = step // 2
    reads = [first + step * i for i in range(3) if first + step * i + span < num_layers]
    return [(read, read + span) for read in reads]


def upcycled_spec(spec: ModelSpec, options: IdentityOptions) -> ModelSpec:
    """The description with the memory layers added. Raises InputError for sizes that cannot work."""
    if spec.memory:
        raise InputError(f"upcycle: the model already has {len(spec.memory)} memory layers; start from the dense one")
    refuse(options.problems())

    def build(chosen: IdentityOptions) -> ModelSpec:
        pairs = parse_paths(chosen.paths, spec.decoder.num_layers, chosen.layout)
        made = replace(spec, memory=_layers(pairs, chosen), tables=_tables(len(pairs), chosen))
        return ModelSpec.from_config(made.to_config(), "upcycle")

    return build(sized(spec, options, build))


def _tables(layers: int, options: IdentityOptions) -> dict[str, TableSpec]:
    rows, width = options.knum**2, options.value_width
    if options.layout == "v2":
        return {SHARED: TableSpec(rows * layers, width, width)}
    return {f"layer{i}": TableSpec(rows, width) for i in range(layers)}


def _layers(pairs: list[tuple[int, int]], options: IdentityOptions) -> tuple[MemoryLayerSpec, ...]:
    v1 = tuple(_layer(pair, f"layer{i}", options) for i, pair in enumerate(pairs))
    if options.layout == "v1":
        return v1
    rows = options.knum**2
    return tuple(
        replace(layer, kind="ultramem_v2", table=SHARED, offset=i * rows, gate_activation="gelu",
                query_heads=options.heads if options.heads > HEADS_A_QUERY else 1)
        for i, layer in enumerate(v1)
    )  # fmt: skip


def _layer(pair: tuple[int, int], table: str, options: IdentityOptions) -> MemoryLayerSpec:
    norm = NormSpec("rms", 1e-5)
    row_factor = next(f for f in range(math.isqrt(options.blocks), 0, -1) if options.blocks % f == 0)
    return MemoryLayerSpec(
        kind="ultramem_v1",
        read_block=pair[0],
        write_block=pair[1],
        heads=options.heads,
        top_m=options.top_m,
        row_keys=options.knum * row_factor,
        col_keys=options.knum * (options.blocks // row_factor),
        key_width=options.key_width,
        table=table,
        slots=options.knum**2,
        rank=RANK,
        cores=CORES,
        query_norm=norm,
        key_norm=norm,
        blocks=options.blocks,
        shuffle=True,
    )


def memory_tasks(spec: ModelSpec, dtype: str, seed: int) -> list[TensorTask]:
    """The initial tensors of every memory layer of `spec` (not the tables); `dtype` is that of the weights."""
    tasks = []
    for index, layer in enumerate(spec.memory):
        core = _generator(seed, f"memory.{index}.core").random((CORES, layer.heads, RANK, RANK), dtype=np.float32)
        u, v = rank_one(core.sum(0))
        fixed = {"core": core, "u": u, "v": v}
        for name, tensor in memory_layout(layer, spec).items():
            full = f"memory.{index}.{name}"
            if name == "shuffle":
                tasks.append(_permutation_task(full, layer.virtual_slots, seed))
            elif name in fixed:
                tasks.append(_cast_task(full, fixed[name], dtype))
            elif name == "output.weight":
                tasks.append(_zero_task(full, tensor.shape, dtype))
            elif name.endswith("norm.weight"):
                scale = np.float32(layer.key_width ** _NORM_POWER[layer.kind])
                tasks.append(_cast_task(full, np.full(tensor.shape, scale), dtype))
            else:
                width = spec.decoder.hidden_size if name == "pre_query.weight" else layer.key_width
                tasks.append(random_task(full, tensor.shape, dtype, width**-0.5, seed))
    return tasks


def table_tasks(spec: ModelSpec, dtype: str, seed: int) -> list[TensorTask]:
    """The initial value tables."""
    return [
        random_task(f"tables.{name}.{part}", (table.rows, width), dtype, VALUE_STD, seed)
        for name, table in spec.tables.items()
        for part, width in (("values", table.value_width), ("pre_values", table.pre_value_width))
        if width
    ]


def random_task(name: str, shape: tuple[int, ...], dtype: str, std: float, seed: int) -> TensorTask:
    """Normal numbers that depend on the seed, the name and the row alone, whatever the chunks."""
    # Drawn in float32 with what the block rounds up to, joined, and scaled.
    scratch = 12 * (chunk_elements(shape, dtype) + _DRAWN)
    return TensorTask(name, dtype, shape, _random_rows(name, shape, dtype, std, seed), scratch)


def _random_rows(
    name: str, shape: tuple[int, ...], dtype: str, std: float, seed: int
) -> Callable[[int, int], np.ndarray]:
    width = math.prod(shape[1:])
    step = max(1, _DRAWN // width)

    def rows(start: int, stop: int) -> np.ndarray:
        parts = [
            _generator(seed, name, block).standard_normal((step, width), dtype=np.float32)
            for block in range(start // step, -(-stop // step))
        ]
        offset = start // step * step
        values = np.concatenate(parts)[start - offset : stop - offset]
        return (values * np.float32(std)).reshape(stop - start, *shape[1:]).astype(numpy_dtype(dtype))

    return rows


def permutation_bytes(spec: ModelSpec) -> int:
    """Bytes of the largest shuffle: a permutation is drawn whole, one layer's at a time."""
    return max((8 * layer.virtual_slots for layer in spec.memory), default=0)


class _Permutation:
    """A random permutation of [0, count), drawn when its first rows are asked for and freed with its last."""

    def __init__(self, name: str, count: int, seed: int) -> None:
        self._name, self._count, self._seed = name, count, seed
        self._lock = threading.Lock()
        self._held: np.ndarray | None = None
        self._left = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        with self._lock:
            if self._held is None:
                self._held, self._left = _generator(self._seed, self._name).permutation(self._count), self._count
            # A copy: a view would keep the whole permutation until it is written.
            part = self._held[start:stop].copy()
            self._left -= stop - start
            if self._left <= 0:
                self._held = None
            return part


def _permutation_task(name: str, count: int, seed: int) -> TensorTask:
    return TensorTask(name, "int64", (count,), _Permutation(name, count, seed).rows)


def _zero_task(name: str, shape: tuple[int, ...], dtype: str) -> TensorTask:
    return TensorTask(name, dtype, shape, lambda start, stop: np.zeros((stop - start, *shape[1:]), numpy_dtype(dtype)))


def _cast_task(name: str, array: np.ndarray, dtype: str) -> TensorTask:
    return TensorTask.of(name, array.astype(numpy_dtype(dtype)))


def _generator(seed: int, name: str, block: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), block])
