"""Bytes read a token by hand from spec §4, and the choice that follows from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests import builders as b
from tests.model.test_memory import changed
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.planning.choice import Choice, Room, choose_folds, layer_report
from ultramem_deploy.planning.folds import folded_spec
from ultramem_deploy.spec import ModelSpec, TableSpec


def dtypes(spec: ModelSpec, dtype: str = "bfloat16") -> dict[str, str]:
    return {name: "int64" if name.endswith(".shuffle") else dtype for name in tensor_layout(spec)}


def published() -> ModelSpec:
    """One layer of P1's 151M model: d 1024, 16x2 heads, kdim 256, knum 1100, D 512, E 4."""
    wide = b.decoder(hidden_size=1024, intermediate_size=4096, num_layers=12)
    layer = b.ultramem_v1(top_m=16, row_keys=2200, col_keys=2200, key_width=256, slots=1100**2)
    return ModelSpec(wide, (layer,), {"t": TableSpec(1100**2, 512)})


def report(spec: ModelSpec, fold: str, batches: tuple[int, ...]) -> dict[str, object]:
    return layer_report(spec, 0, Choice(fold, ""), dtypes(spec), batches)


def test_the_published_layer_by_hand() -> None:
    spec, batches = published(), (1, 64)
    taken, keys = 32, 2 * 2 * 4400 * 256
    found = report(spec, "expand", batches)
    for batch in batches:
        unfolded = taken * (512 * 2 + 8) + (4 * 512 * 1024 * 2 + keys * 4) / batch
        expanded = taken * (2 * 1024 * 2) + keys * 4 / batch
        assert found["bytes_per_token_before"][str(batch)] == round(unfolded)  # type: ignore[index]
        assert found["bytes_per_token_after"][str(batch)] == round(expanded)  # type: ignore[index]
    assert found["table_bytes_before"] == 1100**2 * 512 * 2
    assert found["table_bytes_after"] == 4 * 1100**2 * 2 * 1024 * 2 == 19_824_640_000


def test_pre_values_and_a_smaller_shuffle_by_hand() -> None:
    found = report(b.V2, "shuffle", (1,))
    once = 16 * 32 * 2 + 2 * 2 * 24 * 8 * 4
    assert found["bytes_per_token_before"] == {"1": 8 * ((16 + 8) * 2 + 8) + once}
    assert found["bytes_per_token_after"] == {"1": 8 * ((16 + 8) * 2 + 4) + once}


def test_rank_one_keys_by_hand() -> None:
    """One matrix a side a step, and two keys of 256 numbers for each of 16 rows and columns a head a token."""
    spec = published()
    taken, once, kept = 32, 2 * 4400 * 256 * 4, 2 * 2 * 32 * 256 * 4
    found = layer_report(spec, 0, Choice("shuffle", "", True), dtypes(spec), (1, 64))
    for batch in (1, 64):
        expected = taken * (512 * 2 + 4) + 4 * 512 * 1024 * 2 / batch + once / batch + kept
        assert found["bytes_per_token_after"][str(batch)] == round(expected)  # type: ignore[index]
    assert found["rank_one_keys"] is True and found["choice"] == "shuffle"
    for batch, wins in ((1, True), (64, True), (68, True), (69, False), (512, False)):
        (choice,) = choose_folds(spec, dtypes(spec), "auto", [batch])
        assert choice.rank_one == wins, "they win below batch n/(2m) = 2200/32"
        assert f"rank-1 keys {'read' if wins else 'would read'}" in choice.reason


def test_expansion_wins_at_small_batches_alone() -> None:
    spec = published()
    for batch in (1, 8, 42, 43, 44, 64, 512):
        (choice,) = choose_folds(spec, dtypes(spec), "auto", [batch])
        # E*D*d*2 bytes of W_o against K * (M*d*2 - D*2 - 4) more bytes of rows a token.
        even = 4 * 512 * 1024 * 2 / (32 * (2 * 1024 * 2 - 512 * 2 - 4))
        assert choice.fold == ("expand" if batch < even else "shuffle")
        assert f"below batch {even:.0f}" in choice.reason and f"at batch {batch}" in choice.reason


def test_what_does_not_fit_is_not_chosen() -> None:
    spec = published()
    two = replace(spec, memory=(spec.memory[0], replace(spec.memory[0], write_block=2, table="s")),
                  tables={"t": spec.tables["t"], "s": spec.tables["t"]})  # fmt: skip
    folds = [c.fold for c in choose_folds(two, dtypes(two), "auto", [1], Room(25e9, math.inf))]
    assert folds == ["expand", "shuffle"]
    disk = choose_folds(spec, dtypes(spec), "auto", [1], Room(1e9, math.inf))[0]
    assert disk.fold == "shuffle" and "more than the 953.7 MiB left on the disk" in disk.reason
    memory = choose_folds(spec, dtypes(spec), "auto", [1], Room(1e12, 1e9))[0]
    assert memory.fold == "shuffle" and "of memory left to serve its rows from" in memory.reason


def test_a_table_in_retrieval_order_needs_room_too() -> None:
    spec = changed(b.V1, {"t": TableSpec(144, 16)}, blocks=1, slots=144)
    assert choose_folds(spec, dtypes(spec), "auto", [4096])[0].fold == "shuffle"
    assert choose_folds(spec, dtypes(spec), "auto", [4096], Room(100, math.inf))[0].fold == "keys"


CASES = {
    "gated": (b.PLUS, "none", "a silu gate stands between"),
    "gated, key norm": (changed(b.PLUS, key_norm=b.RMS), "keys", "Norm_k on"),
    "expanded": (changed(b.EXPANDED, key_norm=None), "none", "is already expanded"),
    "one block, shared": (
        ModelSpec(b.DECODER, tuple(b.ultramem_v1(blocks=1, slots=144, write_block=w) for w in (0, 1)),
                  {"t": TableSpec(144, 16)}),
        "shuffle", "the shuffle shrinks",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "fold", "reason"), CASES.values(), ids=CASES)
def test_automatic_choices(spec: ModelSpec, fold: str, reason: str) -> None:
    choices = choose_folds(spec, dtypes(spec), "auto", [10**6])
    assert {choice.fold for choice in choices} == {fold}
    assert all(reason in choice.reason for choice in choices)


def test_a_shared_table_is_named() -> None:
    choices = choose_folds(b.V2, dtypes(b.V2), "auto", [1])
    assert all("table 't' is shared by 2 layers, each gets its own" in c.reason for c in choices if c.fold == "expand")
    assert any(c.fold == "expand" for c in choices)


REFUSED = {
    "no shuffle": (changed(b.V1, shuffle=False), "shuffle", "layer 0 has no shuffle; choose --mode auto or keys"),
    "one matrix": (b.PLUS, "rank1", "layer 0 already reads one key matrix a side; nothing"),
    "no key norm": (changed(b.V1, key_norm=None), "keys", "layer 0 has no key norm; choose another"),
    "gate": (b.PLUS, "expand", "layer 0 .memory_plus. cannot be expanded"),
    "dense": (b.PLAIN, "auto", "has no memory layers; upcycle it"),
}


@pytest.mark.parametrize(("spec", "mode", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(spec: ModelSpec, mode: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_folds(spec, dtypes(spec), mode)


def test_a_mode_leaves_layers_that_cannot_have_it() -> None:
    other = b.ultramem_v1(shuffle=False, write_block=0, table="s")
    spec = ModelSpec(b.DECODER, (b.ultramem_v1(), other), {"t": TableSpec(36, 16), "s": TableSpec(36, 16)})
    first, second = choose_folds(spec, dtypes(spec), "shuffle")
    assert (first.fold, second.fold) == ("shuffle", "keys") and "has no shuffle" in second.reason


def test_names_of_new_tables_are_free() -> None:
    taken = replace(b.V1, memory=(b.ultramem_v1(table="expanded0"),), tables={"expanded0": TableSpec(36, 16)})
    after = folded_spec(taken, ["expand"])
    assert ModelSpec.from_config(after.to_config()) == after
    assert list(after.tables) == ["expanded0_"]
