"""Which fold suits a memory layer: what it reads a token before and after, from the description alone (spec §4).

Folds stack: `shuffle` folds the key norm too, `expand` folds both and the output projection. Rank-1 keys go with any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ..checkpoint.header import itemsize
from ..layout import addressed_cores
from ..spec import MemoryLayerSpec, ModelSpec, TableSpec
from ..storage import SCALE_BYTES, STORAGES

_LARGEST_INT32 = (1 << 31) - 1


@dataclass(frozen=True)
class ItemBytes:
    """Bytes an item of what one layer reads; keys as they are multiplied, which is float32 once they are normalised.

    Values of int4 are half a byte; `scales` are those of a row of values and of one of pre-values together.
    """

    values: float
    pre_values: float
    output: int
    keys: int
    shuffle: int
    scales: int = 0

    @classmethod
    def of(cls, spec: ModelSpec, index: int, dtypes: Mapping[str, str]) -> ItemBytes:
        """Of memory layer `index`; `dtypes` maps tensor names to what they are stored as."""
        layer = spec.memory[index]
        name, own, table = f"tables.{layer.table}", f"memory.{index}", spec.tables[layer.table]
        quantised = table.storage != "float"
        one = STORAGES[table.storage].bits / 8 if quantised else None
        scales = addressed_cores(spec, layer.table) + (1 if table.pre_value_width else 0)
        return cls(
            values=one or itemsize(dtypes[f"{name}.values"]),
            pre_values=(one or itemsize(dtypes[f"{name}.pre_values"])) if table.pre_value_width else 0,
            output=0 if layer.expanded else itemsize(dtypes[f"{own}.output.weight"]),
            keys=4 if layer.key_norm else itemsize(dtypes[f"{own}.col_keys"]),
            shuffle=itemsize(dtypes[f"{own}.shuffle"]) if layer.shuffle else 0,
            scales=SCALE_BYTES * scales if quantised else 0,
        )


def key_numbers(layer: MemoryLayerSpec) -> int:
    """Numbers in both sides' keys: H*R*(n_row + n_col)*kdim."""
    keys = layer.col_keys + (0 if layer.scoring == "signed" else layer.row_keys)
    return layer.heads * layer.key_rank * keys * layer.key_width


def projection_numbers(layer: MemoryLayerSpec, spec: ModelSpec) -> int:
    """Numbers in W_o: E*D*d; none where it is folded away."""
    width = spec.tables[layer.table].value_width
    return 0 if layer.expanded else layer.output_blocks * width * spec.decoder.hidden_size


def token_bytes(layer: MemoryLayerSpec, spec: ModelSpec, items: ItemBytes, batch: int) -> float:
    """Bytes a token that a layer's lookup reads in a step of `batch` tokens (spec §4).

    K*(D + P) numbers of rows (an expanded row is M*d wide) and K shuffle entries; W_o and the keys once a batch: of
    rank-1 keys one matrix a side, and those of the kept rows and columns a token. What no fold changes (query, gates,
    cores) is left out.
    """
    table = spec.tables[layer.table]
    rows = layer.taken * row_bytes(table, items) - (layer.taken - layer.summed) * table.value_width * items.values
    shuffle = layer.taken * items.shuffle if layer.shuffle else 0
    keys, kept = key_numbers(layer) * items.keys, 0
    if layer.rank_one_keys:
        keys, kept = rank_one_bytes(layer), kept_key_numbers(layer) * items.keys
    once = projection_numbers(layer, spec) * items.output + keys
    return rows + shuffle + kept + once / batch


def rank_one_bytes(layer: MemoryLayerSpec) -> int:
    """Bytes of both sides' rank-1 keys, float32: H*(n_row + n_col)*kdim numbers."""
    return 4 * layer.heads * (layer.row_keys + layer.col_keys) * layer.key_width


def kept_key_numbers(layer: MemoryLayerSpec) -> int:
    """Numbers in the keys of the rows and columns that stage 1 keeps a token."""
    kept = min(layer.top_m, layer.row_keys) + min(layer.top_m, layer.col_keys)
    return layer.heads * layer.rank * kept * layer.key_width


def table_bytes(layer: MemoryLayerSpec, spec: ModelSpec, items: ItemBytes) -> int:
    """Bytes of the tables that a layer reads; a shared one counts for each."""
    table = spec.tables[layer.table]
    return round(table.rows * row_bytes(table, items))


def row_bytes(table: TableSpec, items: ItemBytes) -> float:
    """Bytes of a row: its values, its pre-values and their scales."""
    return table.value_width * items.values + table.pre_value_width * items.pre_values + items.scales


def obstacle(fold: str, spec: ModelSpec, index: int, items: ItemBytes) -> str | None:
    """Why a layer cannot be folded so; None where it can."""
    layer = spec.memory[index]
    storage = spec.tables[layer.table].storage
    if fold == "expand" and layer.expanded:
        return "is already expanded"
    if fold == "expand" and storage != "float":
        return f"has a table quantised to {storage}, which expanding would round twice"
    if fold == "expand" and layer.output_gate:
        return f"({layer.kind}) cannot be expanded: a silu gate stands between its table and its output projection"
    if fold == "expand" and layer.output_bias:
        return f"({layer.kind}) cannot be expanded: its output projection has a bias, which a table row cannot hold"
    if fold == "shuffle" and not layer.shuffle:
        return "has no shuffle"
    if fold == "shuffle" and layer.expanded:
        return "has rows in another order by choice already"
    if fold == "shuffle" and not orders(spec, index):
        if items.shuffle <= 4:
            return "has an int32 shuffle already"
        if layer.virtual_slots > _LARGEST_INT32:
            return f"has {layer.virtual_slots} virtual slots, which int32 cannot number"
    if fold == "keys" and layer.key_norm is None:
        return "has no key norm"
    if fold == "rank1" and layer.rank_one_keys:
        return "already has rank-1 keys"
    if fold == "rank1" and (layer.scoring != "tucker" or layer.rank == 1):
        return "already reads one key matrix a side"
    return None


def orders(spec: ModelSpec, index: int) -> bool:
    """Whether the shuffle fold stores the layer's rows in retrieval order: E = 1 and a table of its own."""
    layer = spec.memory[index]
    users = sum(other.table == layer.table for other in spec.memory)
    return layer.shuffle and layer.blocks == 1 and users == 1


def folded_items(fold: str, items: ItemBytes) -> ItemBytes:
    """Item sizes after a fold, rows kept in their dtype."""
    if fold == "expand":
        return replace(items, output=0, shuffle=0)
    return replace(items, shuffle=min(items.shuffle, 4)) if fold == "shuffle" else items


def folded_spec(spec: ModelSpec, folds: Sequence[str], rank_one: Collection[int] = ()) -> ModelSpec:
    """The description after folding layer i by `folds[i]`, and those in `rank_one` to rank-1 keys; all possible."""
    layers: list[MemoryLayerSpec] = []
    tables: dict[str, TableSpec] = {}
    for index, fold in enumerate(folds):
        layer, added = _folded_layer(spec, index, fold)
        layers.append(replace(layer, rank_one_keys=True) if index in rank_one else layer)
        tables |= added
    used = {layer.table for layer in layers}
    kept = {name: table for name, table in spec.tables.items() if name in used}
    return replace(spec, memory=tuple(layers), tables=kept | tables)


def _folded_layer(spec: ModelSpec, index: int, fold: str) -> tuple[MemoryLayerSpec, dict[str, TableSpec]]:
    layer = spec.memory[index]
    if fold == "none":
        return layer, {}
    layer = replace(layer, key_norm=None)
    table, slots = spec.tables[layer.table], layer.virtual_slots
    if fold == "expand":
        name, width = _table_name("expanded", index, spec), layer.cores * spec.decoder.hidden_size
        plain = replace(layer, offset=0, blocks=1, sum_blocks=False, shuffle=False, expanded=True, empty_slot=None)
        return replace(plain, table=name, slots=slots), {name: TableSpec(slots, width, table.pre_value_width)}
    if fold == "shuffle" and orders(spec, index):
        name = _table_name("ordered", index, spec)
        ordered = replace(layer, table=name, slots=slots, offset=0, shuffle=False, empty_slot=None)
        return ordered, {name: replace(table, rows=slots)}
    return layer, {}


def _table_name(kind: str, index: int, spec: ModelSpec) -> str:
    name = f"{kind}{index}"
    while name in spec.tables:
        name += "_"
    return name
