"""The fold of every memory layer, chosen or demanded, each with its reason in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..defaults import BATCHES
from ..errors import InputError
from ..spec import ModelSpec
from ..units import size
from .folds import (
    ItemBytes,
    folded_items,
    folded_spec,
    kept_key_numbers,
    key_numbers,
    obstacle,
    orders,
    projection_numbers,
    rank_one_bytes,
    table_bytes,
    token_bytes,
)

MODES = ("expand", "shuffle", "rank1", "keys", "auto")


@dataclass(frozen=True)
class Choice:
    """How a layer is folded ("expand", "shuffle", "keys" or "none"), whether to rank-1 keys as well, and why."""

    fold: str
    reason: str
    rank_one: bool = False

    @property
    def name(self) -> str:
        """What a table shows: rank-1 keys count where nothing but keys is folded."""
        return "rank-1 keys" if self.rank_one and self.fold in ("keys", "none") else self.fold

    @property
    def whole(self) -> str:
        """Everything that is folded."""
        return f"{self.fold}, rank-1 keys" if self.rank_one else self.fold


def folds_of(choices: Sequence[Choice]) -> tuple[list[str], list[int]]:
    """The fold of each layer, and the layers that get rank-1 keys."""
    return [choice.fold for choice in choices], [index for index, choice in enumerate(choices) if choice.rank_one]


@dataclass(frozen=True)
class Room:
    """Bytes that new tables may take: on the disk, and in the memory that will serve their rows."""

    disk: float = math.inf
    memory: float = math.inf

    def less(self, count: int) -> Room:
        return Room(self.disk - count, self.memory - count)


def choose_folds(
    spec: ModelSpec, dtypes: Mapping[str, str], mode: str, batches: Sequence[int] = BATCHES, room: Room | None = None
) -> list[Choice]:
    """The fold of every layer: that of `mode` where it is possible, or for "auto" what reads the fewest bytes and fits.

    Raises InputError for a model without memory layers, and where `mode` demands what a layer cannot have.
    """
    if not spec.memory:
        raise InputError("fold: the model has no memory layers; upcycle it or convert a checkpoint that has them")
    items = [ItemBytes.of(spec, index, dtypes) for index in range(len(spec.memory))]
    if mode != "auto":
        return _demanded(spec, items, mode)
    choices, left = [], room or Room()
    for index in range(len(spec.memory)):
        choice, taken = _automatic(spec, index, items[index], batches, left)
        choices.append(_with_rank_one(spec, index, items[index], batches, choice))
        left = left.less(taken)
    return choices


def _demanded(spec: ModelSpec, items: Sequence[ItemBytes], mode: str) -> list[Choice]:
    found = {index: obstacle(mode, spec, index, own) for index, own in enumerate(items)}
    refused = {index: why for index, why in found.items() if why}
    if refused and (mode == "expand" or len(refused) == len(items)):
        index, why = next(iter(refused.items()))
        raise InputError(f"fold: memory layer {index} {why}; {_instead(mode, why)}")
    asked = f"asked for by --mode {mode}"
    choices = []
    for index, own in enumerate(items):
        if index not in refused:
            keys = "keys" if spec.memory[index].key_norm else "none"
            choices.append(Choice(keys, asked, True) if mode == "rank1" else Choice(mode, asked))
            continue
        fold = _plain(spec, index, own) if mode not in ("keys", "rank1") else "none"
        choices.append(Choice(fold, f"{refused[index]}, so --mode {mode} leaves it"))
    return choices


def _instead(mode: str, why: str) -> str:
    if "quantised" in why:
        return "fold the checkpoint that it was quantised from, then quantize"
    if "already" in why:
        return "start from the unfolded checkpoint" if mode == "expand" else "nothing is left to fold so"
    return "choose --mode auto or keys" if mode != "keys" else "choose another --mode"


def _plain(spec: ModelSpec, index: int, items: ItemBytes) -> str:
    """The most that can be folded without expanding."""
    return next((fold for fold in ("shuffle", "keys") if obstacle(fold, spec, index, items) is None), "none")


def _automatic(spec: ModelSpec, index: int, items: ItemBytes, batches: Sequence[int], room: Room) -> tuple[Choice, int]:
    """The choice and the bytes of new tables that it takes."""
    found = obstacle("expand", spec, index, items)
    against = found and f"the layer {found}"
    if against is None:
        needed = _new_table_bytes(spec, index, "expand", items)
        trade = _Trade.of(spec, index, items, batches)
        against = trade.against or _too_large(needed, room)
        if against is None:
            return Choice("expand", trade.words + _shared(spec, index)), needed
    fold = _plain(spec, index, items)
    needed = _new_table_bytes(spec, index, fold, items)
    if needed > room.disk:
        fold, needed = ("keys" if spec.memory[index].key_norm else "none"), 0
    gain = _gain(spec, index, fold, items)
    return Choice(fold, f"{gain}; {against}" if gain else f"nothing to fold: {against}"), needed


def _with_rank_one(spec: ModelSpec, index: int, items: ItemBytes, batches: Sequence[int], choice: Choice) -> Choice:
    """The choice with rank-1 keys where they read fewer bytes over the batches, and what they do to them."""
    if obstacle("rank1", spec, index, items):
        return choice
    layer = _alone(spec, index, choice.fold).memory[index]
    full, once = key_numbers(layer) * items.keys, rank_one_bytes(layer)
    kept = kept_key_numbers(layer) * items.keys
    mean = math.prod(((once / batch + kept) * batch / full) ** (1 / len(batches)) for batch in batches)
    facts = (
        f"{mean:.2f}x the bytes of keys {_where(batches)}: {size(once)} a step instead of {size(full)}, and"
        f" {size(kept)} a token"
    )
    if mean < 1:
        return Choice(choice.fold, f"{choice.reason}; rank-1 keys read {facts}", True)
    return Choice(choice.fold, f"{choice.reason}; rank-1 keys would read {facts}")


def _new_table_bytes(spec: ModelSpec, index: int, fold: str, items: ItemBytes) -> int:
    after = _alone(spec, index, fold)
    if after.memory[index].table == spec.memory[index].table:
        return 0
    return table_bytes(after.memory[index], after, folded_items(fold, items))


def _alone(spec: ModelSpec, index: int, fold: str) -> ModelSpec:
    return folded_spec(spec, [fold if i == index else "none" for i in range(len(spec.memory))])


@dataclass(frozen=True)
class _Trade:
    """What expanding does to the bytes read: `words` in its favour, or `against` it."""

    words: str
    against: str | None

    @classmethod
    def of(cls, spec: ModelSpec, index: int, items: ItemBytes, batches: Sequence[int]) -> _Trade:
        plain = _plain(spec, index, items)
        read = [_read(spec, index, fold, items, batches) for fold in (plain, "expand")]
        mean = math.exp(sum(math.log(b / a) for a, b in zip(*read, strict=True)) / len(batches))
        where = _where(batches)
        even = _break_even(spec, index, plain, items)
        wins = "at every batch" if even == math.inf else f"below batch {even:.0f}"
        output = size(projection_numbers(spec.memory[index], spec) * items.output)
        rows = [value_bytes(spec, index, fold, items) for fold in (plain, "expand")]
        facts = (
            f"{mean:.2f}x the bytes {where}: W_o ({output} a step) vanishes, a row grows from {size(rows[0])} to "
            f"{size(rows[1])}; fewer {wins}"
        )
        return cls(f"expanding reads {facts}", None if mean < 1 else f"expanding would read {facts}")


def _where(batches: Sequence[int]) -> str:
    return f"at batch {batches[0]}" if len(batches) == 1 else f"over batches {', '.join(map(str, batches))}"


def _read(spec: ModelSpec, index: int, fold: str, items: ItemBytes, batches: Sequence[int]) -> list[float]:
    after = _alone(spec, index, fold)
    return [token_bytes(after.memory[index], after, folded_items(fold, items), batch) for batch in batches]


def value_bytes(spec: ModelSpec, index: int, fold: str, items: ItemBytes) -> int:
    """Bytes of values that one retrieved slot reads after a fold."""
    after = _alone(spec, index, fold)
    return round(after.tables[after.memory[index].table].value_width * folded_items(fold, items).values)


def _break_even(spec: ModelSpec, index: int, plain: str, items: ItemBytes) -> float:
    """The batch below which expanding reads fewer bytes: E*D*d / (K * (what a retrieved slot reads more))."""
    few, many = _read(spec, index, plain, items, [10**12])[0], _read(spec, index, "expand", items, [10**12])[0]
    saved = projection_numbers(spec.memory[index], spec) * items.output
    return saved / (many - few) if many > few else math.inf


def _too_large(needed: int, room: Room) -> str | None:
    if needed > room.disk:
        return f"expanded it would take {size(needed)}, more than the {size(max(0, room.disk))} left on the disk"
    if needed > room.memory:
        return (
            f"expanded it would take {size(needed)}, more than the {size(max(0, room.memory))} of memory left to serve"
            " its rows from"
        )
    return None


def _gain(spec: ModelSpec, index: int, fold: str, items: ItemBytes) -> str:
    layer = spec.memory[index]
    keys = f"Norm_k on {key_numbers(layer):,} key numbers a step vanishes" if layer.key_norm else ""
    if fold != "shuffle":
        return keys if fold == "keys" else ""
    held = size(layer.virtual_slots * items.shuffle)
    if orders(spec, index):
        words = f"rows lie in retrieval order and the shuffle ({held}) vanishes"
    else:
        words = f"the shuffle shrinks from {held} to {size(layer.virtual_slots * 4)}"
    return f"{words}; {keys}" if keys else words


def _shared(spec: ModelSpec, index: int) -> str:
    name = spec.memory[index].table
    users = sum(layer.table == name for layer in spec.memory)
    return f"; table {name!r} is shared by {users} layers, each gets its own" if users > 1 else ""


def layer_report(
    spec: ModelSpec, index: int, choice: Choice, dtypes: Mapping[str, str], batches: Sequence[int]
) -> dict[str, object]:
    """One layer of the plan: choice, reason, table bytes and bytes read a token at each batch, before and after."""
    items = ItemBytes.of(spec, index, dtypes)
    folds = [choice.fold if i == index else "none" for i in range(len(spec.memory))]
    after = folded_spec(spec, folds, [index] if choice.rank_one else [])
    return read_report(index, choice, (spec, items), (after, folded_items(choice.fold, items)), batches)


def read_report(
    index: int,
    choice: Choice,
    before: tuple[ModelSpec, ItemBytes],
    after: tuple[ModelSpec, ItemBytes],
    batches: Sequence[int],
) -> dict[str, object]:
    """What layer `index` holds and reads before and after a stage, beside what was chosen."""
    report: dict[str, object] = {
        "layer": index,
        "choice": choice.name,
        "rank_one_keys": after[0].memory[index].rank_one_keys,
        "reason": choice.reason,
    }
    for when, (model, own) in (("before", before), ("after", after)):
        report[f"table_bytes_{when}"] = table_bytes(model.memory[index], model, own)
        read = {str(batch): round(token_bytes(model.memory[index], model, own, batch)) for batch in batches}
        report[f"bytes_per_token_{when}"] = read
    return report
