"""Folding shuffles and keys, mixtures, and what `plan` promised: equal outputs, the bytes that were predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import builders as b
from tests.conftest import Written
from tests.converters.test_fold import arrays
from tests.formulas_memory import memory_layer, norm
from tests.model.test_memory import assert_same, build, changed, hidden_states, layers, run
from ultramem_deploy.checkpoint import Checkpoint, read_provenance
from ultramem_deploy.checkpoint.budget import chunk_bytes
from ultramem_deploy.converters.fold.stage import FoldJob
from ultramem_deploy.errors import InputError
from ultramem_deploy.pipeline import export, fold, heal, plan, verify
from ultramem_deploy.planning.choice import folds_of
from ultramem_deploy.planning.work import Stored, fold_work
from ultramem_deploy.spec import ModelSpec, TableSpec

ONE_BLOCK = changed(b.V1, {"t": TableSpec(150, 16)}, blocks=1, slots=144, offset=9)
GATED = changed(b.V2, {"t": TableSpec(144, 16, 8)}, blocks=1, slots=144)
MIXED = ModelSpec(
    b.decoder(num_layers=4),
    (
        b.ultramem_v1(read_block=0, write_block=0),
        b.ultramem_v1(read_block=1, write_block=1, table="own", blocks=1, slots=144),
        b.memory_plus(read_block=2, write_block=2, table="plus", key_norm=b.RMS),
        b.memory_plus(read_block=3, write_block=3, table="plus"),
    ),
    {"t": TableSpec(36, 16), "own": TableSpec(144, 16), "plus": TableSpec(144, 16)},
)
CASES = {
    "int32": (b.V1, "shuffle"),
    "int32, shared and gated": (b.V2, "shuffle"),
    "in order": (ONE_BLOCK, "shuffle"),
    "in order, gated": (replace(GATED, memory=GATED.memory[:1]), "shuffle"),
    "keys": (b.V2, "keys"),
    "mixed, shuffle": (MIXED, "shuffle"),
    "mixed, keys": (MIXED, "keys"),
    "rank-1 keys": (b.V2, "rank1"),
    "mixed, rank-1 keys": (MIXED, "rank1"),
    "mixed, auto": (MIXED, "auto"),
}


@pytest.mark.parametrize(("spec", "mode"), CASES.values(), ids=CASES)
def test_logits_are_equal(spec: ModelSpec, mode: str, written: Written, tmp_path: Path) -> None:
    source, out = written(spec), tmp_path / "out"
    receipt = fold(source, out, mode=mode)
    found = verify(source, out, tokens=100, max_abs=1e-4)
    assert found["index_agreement"] == 1.0 and found["compared_memory_layers"] == len(spec.memory)
    assert receipt["max_relative_error"] < 1e-6 and receipt["min_index_agreement"] > 0.999
    assert all(layer["choice"] and layer["reason"] for layer in receipt["layers"])
    assert fold(source, out, mode=mode) == receipt | {"up_to_date": True}


def test_every_choice_can_stand_beside_the_others(written: Written, tmp_path: Path) -> None:
    receipt = fold(written(MIXED), tmp_path / "out", mode="auto", batch=1)
    assert [layer["choice"] for layer in receipt["layers"]] == ["expand", "expand", "keys", "none"]
    assert [layer["rank_one_keys"] for layer in receipt["layers"]] == [True, True, False, False]
    receipt = fold(written(MIXED, "again"), tmp_path / "large", mode="auto", batch=10**6)
    assert [layer["choice"] for layer in receipt["layers"]] == ["shuffle", "shuffle", "keys", "none"]
    assert not any(layer["rank_one_keys"] for layer in receipt["layers"])
    provenance = read_provenance(tmp_path / "large")
    assert provenance is not None and provenance["options"]["folds"] == ["shuffle", "shuffle", "keys", "none"]


def test_what_is_stored(written: Written, tmp_path: Path) -> None:
    source = written(ONE_BLOCK, dtype="bfloat16")
    fold(source, tmp_path / "ordered", mode="shuffle")
    before, after = arrays(source), arrays(tmp_path / "ordered")
    rows = (before["memory.0.shuffle"] + 9) % 150
    np.testing.assert_array_equal(after["tables.ordered0.values"], before["tables.t.values"][rows])
    assert after["memory.0.row_keys"].dtype == np.float32
    assert not any(name.endswith(("shuffle", "key_norm.weight")) or "tables.t" in name for name in after)
    wide = written(b.V1, "wide")
    fold(wide, tmp_path / "narrow", mode="shuffle")
    narrow = arrays(tmp_path / "narrow")["memory.0.shuffle"]
    assert narrow.dtype == np.int32
    np.testing.assert_array_equal(narrow, arrays(wide)["memory.0.shuffle"])


@settings(max_examples=15)
@given(layers(), st.integers(0, 2**16), st.sampled_from(["shuffle", "keys", "expand", "rank1"]), st.booleans())
def test_any_layer_computes_the_formula(
    tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, seed: int, mode: str, one_block: bool
) -> None:
    layer = spec.memory[0]
    if one_block:
        slots = layer.virtual_slots
        table = replace(spec.tables["t"], rows=slots + layer.offset + 1)
        spec = replace(spec, memory=(replace(layer, blocks=1, slots=slots),), tables={"t": table})
    possible = {"shuffle": layer.shuffle, "keys": layer.key_norm is not None, "rank1": layer.rank > 1}
    assume(possible.get(mode, True))
    folder = tmp_path_factory.mktemp("modes")
    source = b.write_checkpoint(folder / "model", spec, seed=seed)
    fold(source, folder / "out", mode=mode)
    folded = ModelSpec.load(folder / "out")
    hidden = hidden_states(seed, tokens=8)
    output, indices, _ = run(build(folded, arrays(folder / "out")), 0, hidden)
    truth = memory_layer(spec, 0, arrays(source), hidden)
    assume((truth.margin > 1e-3).mean() > 0.8 and np.abs(truth.output).max() > 0.05)
    assert_same(spec, 0, output, indices, truth)


@pytest.mark.parametrize("case", ["int32", "int32, shared and gated", "in order", "rank-1 keys"])
def test_exported_bundles_take_it(case: str, written: Written, tmp_path: Path) -> None:
    spec, mode = CASES[case]
    fold(written(spec), tmp_path / "out", mode=mode)
    export(tmp_path / "out", tmp_path / "bundle", target="portable")
    assert verify(tmp_path / "out", tmp_path / "bundle", runtime="ort-bodies", tokens=60, max_abs=1e-4)["passed"]


def test_rank_one_keys_are_folded_from_the_normalised_ones(written: Written, tmp_path: Path) -> None:
    source = written(b.V1, dtype="bfloat16")
    fold(source, tmp_path / "out", mode="rank1")
    before, after = arrays(source), arrays(tmp_path / "out")
    own = {n.removeprefix("memory.0."): t.astype(np.float64) for n, t in before.items() if n.startswith("memory.0.")}
    for side, factor in (("row", "u"), ("col", "v")):
        keys = norm(own[f"{side}_keys"], b.V1.memory[0].key_norm, own, "key_norm")
        truth = sum(own[factor][:, r, None, None] * keys[:, r] for r in range(2))
        found = after[f"memory.0.{side}_rank_one"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-7)
    assert after["memory.0.shuffle"].dtype == np.int64


def test_rank_one_keys_go_with_any_fold(written: Written, tmp_path: Path) -> None:
    """Auto takes both where many keys meet few kept ones; one fold after another gives the same model."""
    spec = changed(b.V1, {"t": TableSpec(1024, 16)}, row_keys=64, col_keys=64, slots=1024, top_m=2)
    source = written(spec)
    receipt = fold(source, tmp_path / "both", mode="auto", batch=1)
    layer = receipt["layers"][0]
    assert layer["choice"] == "expand" and layer["rank_one_keys"] and "rank-1 keys read 0." in layer["reason"]
    fold(source, tmp_path / "expanded")
    fold(tmp_path / "expanded", tmp_path / "stacked", mode="rank1")
    assert ModelSpec.load(tmp_path / "both") == ModelSpec.load(tmp_path / "stacked")
    verify(source, tmp_path / "both", tokens=60, max_abs=1e-4)
    with pytest.raises(InputError, match="layer 0 already has rank-1 keys; nothing is left to fold so"):
        fold(tmp_path / "both", tmp_path / "again", mode="rank1")
    with pytest.raises(InputError, match="heal: memory layer 0 has rank-1 keys"):
        heal(tmp_path / "both", tmp_path / "healed")


def test_refusals(written: Written, tmp_path: Path) -> None:
    source = written(b.V1)
    with pytest.raises(InputError, match="--batch: only --mode auto chooses by the batch"):
        fold(source, tmp_path / "out", mode="keys", batch=4)
    with pytest.raises(InputError, match="--batch: expected positive numbers, found 0"):
        fold(source, tmp_path / "out", mode="auto", batch=0)
    with pytest.raises(InputError, match="--dtype: applies to rewritten table values"):
        fold(source, tmp_path / "out", mode="keys", dtype="float16")
    fold(source, tmp_path / "keys", mode="keys")
    with pytest.raises(InputError, match="layer 0 has no key norm"):
        fold(tmp_path / "keys", tmp_path / "out", mode="keys")
    fold(source, tmp_path / "narrow", mode="shuffle")
    with pytest.raises(InputError, match="layer 0 has an int32 shuffle already; nothing is left"):
        fold(tmp_path / "narrow", tmp_path / "out", mode="shuffle")
    assert not list(tmp_path.glob("out*"))


def test_a_folded_checkpoint_is_expanded_further(written: Written, tmp_path: Path) -> None:
    source = written(b.V1)
    fold(source, tmp_path / "narrow", mode="shuffle")
    fold(tmp_path / "narrow", tmp_path / "expanded")
    assert verify(source, tmp_path / "expanded", tokens=60, max_abs=1e-4)["passed"]


def test_auto_follows_the_plan(written: Written, tmp_path: Path) -> None:
    source = written(MIXED)
    for batch in (1, 4096):
        planned = plan(source, batch=batch)
        receipt = fold(source, tmp_path / f"out{batch}", mode="auto", batch=batch)
        assert [x["choice"] for x in planned["layers"]] == [x["choice"] for x in receipt["layers"]]
        assert [x["reason"] for x in planned["layers"]] == [x["reason"] for x in receipt["layers"]]


@pytest.mark.parametrize(("spec", "mode"), [*CASES.values(), (b.V1, "expand"), (b.V2, "expand")])
def test_the_plan_counts_what_the_fold_makes(spec: ModelSpec, mode: str, written: Written, tmp_path: Path) -> None:
    source, out = written(spec, dtype="bfloat16"), tmp_path / "out"
    checkpoint = Checkpoint.open(source)
    tensors = {n: Stored(i.shape, i.dtype, str(i.file)) for n, i in checkpoint.tensors.items()}
    planned = FoldJob.plan(source, out, mode, None, (1,))
    work, after = fold_work(spec, tensors, *folds_of(planned.choices))
    assert after == planned.folded and work.held == planned.held_bytes
    pieces = {piece.name: piece for piece in work.pieces}
    for tasks in planned.groups().values():
        for task in tasks:
            assert pieces[task.name].nbytes == task.nbytes and pieces[task.name].chunk_bytes == chunk_bytes(task)
            assert not pieces[task.name].linked
    fold(source, out, mode=mode, batch=1 if mode == "auto" else None)
    made = sum(f.stat().st_size for f in out.glob("*.safetensors") if f.stat().st_nlink == 1)
    headers = 4096 * len(list(out.glob("*.safetensors")))
    needed = sum(piece.nbytes for piece in work.pieces if not piece.linked)
    assert needed <= made <= needed + headers
