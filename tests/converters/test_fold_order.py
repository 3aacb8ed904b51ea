"""fold --order frequency: the same function, hot rows first, whatever form the table has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders as b
from tests.conftest import Written
from tests.converters.test_fold import arrays
from tests.model.test_memory import changed
from ultramem_deploy.errors import InputError
from ultramem_deploy.pipeline import export, fold, profile, quantize, verify
from ultramem_deploy.spec import ModelSpec, TableSpec

WHOLE = changed(b.V2, {"t": TableSpec(36, 16, 8)}, offset=30)
CASES = {
    "four blocks, shuffled": b.V1,
    "shared and gated, an offset": WHOLE,
    "an empty slot": changed(b.V1, empty_slot=17),
    "memory+, no shuffle before": b.PLUS,
    "expanded": b.EXPANDED,
}


def rows_in_use(
    spec: ModelSpec, tensors: dict[str, np.ndarray], counts: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Accesses of every table row, one slot at a time."""
    found = {name: np.zeros(table.rows, int) for name, table in spec.tables.items()}
    for index, layer in enumerate(spec.memory):
        for slot, times in enumerate(counts[f"accesses.{index}"]):
            sigma = int(tensors[f"memory.{index}.shuffle"][slot]) if layer.shuffle else slot
            found[layer.table][(sigma % layer.slots + layer.offset) % spec.tables[layer.table].rows] += times
    return found


@pytest.mark.parametrize("storage", [None, "int4"])
@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_the_function_stays_and_hot_rows_come_first(
    spec: ModelSpec, storage: str | None, written: Written, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    source, kept, out = written(spec, tokenizer=True), tmp_path / "accesses.safetensors", tmp_path / "out"
    if storage:
        quantize(source, tmp_path / "codes", tables=storage)
        source = tmp_path / "codes"
    profile(source, tokens=400, out=kept)
    receipt = fold(source, out, order="frequency", profile=kept)
    found = verify(source, out, tokens=200, max_abs=1e-4)
    assert found["index_agreement"] == 1.0 and receipt["max_relative_error"] < 1e-6
    before, after, described = arrays(source), arrays(out), ModelSpec.load(out)
    counts = load_file(kept)
    old, new = rows_in_use(spec, before, counts), rows_in_use(described, after, counts)
    for name in spec.tables:
        assert (np.diff(new[name]) <= 0).all()
        assert sorted(new[name]) == sorted(old[name])
        order = np.argsort(-old[name], kind="stable")
        np.testing.assert_array_equal(after[f"tables.{name}.values"], before[f"tables.{name}.values"][order])
    assert all(layer.shuffle for layer in described.memory)
    assert after["memory.0.shuffle"].dtype == np.int32
    export(out, tmp_path / "bundle")
    verify(out, tmp_path / "bundle", tokens=64)
    assert fold(source, out, order="frequency", profile=kept)["up_to_date"]


def test_pages_that_hold_nine_tenths_of_the_accesses(written: Written, tmp_path: Path) -> None:
    # Rows of 1 KiB, four a page: hot ones are scattered before and together after.
    spec = replace(b.PLUS, tables={"t": TableSpec(144, 256)})
    source = written(spec, tokenizer=True)
    text = b.write_text(tmp_path / "text.txt")
    (table,) = fold(source, tmp_path / "out", order="frequency", text=text)["tables"]
    assert table["rows"] == 144 and table["4KiB_pages_after"] < table["4KiB_pages_before"] <= 36
    assert table["2MiB_pages_before"] == table["2MiB_pages_after"] == 1
    again = fold(tmp_path / "out", tmp_path / "again", order="frequency", text=text)["tables"][0]
    assert again["4KiB_pages_before"] == again["4KiB_pages_after"] == table["4KiB_pages_after"]


@pytest.mark.parametrize(("spec", "options", "said"), [
    (b.V2, {}, "memory layer 0 reads a window of 36 of the 60 rows of table 't', which sorting would tear apart"),
    (b.PLAIN, {}, "the model has no memory layers"),
    (b.V1, {"mode": "keys"}, "--order: a fold of its own"),
    (b.V1, {"order": "size"}, "--order: expected frequency, found 'size'"),
    (b.V1, {"order": None, "text": "some"}, "--text: only --order frequency reads it"),
])  # fmt: skip
def test_refusals(spec: ModelSpec, options: dict[str, Any], said: str, written: Written, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        fold(written(spec, tokenizer=True), tmp_path / "out", **({"order": "frequency"} | options))
    assert not (tmp_path / "out").exists()


def test_rows_sorted_by_choice_are_not_sorted_back(written: Written, tmp_path: Path) -> None:
    fold(written(b.EXPANDED, tokenizer=True), tmp_path / "out", order="frequency")
    with pytest.raises(InputError, match="has rows in another order by choice already"):
        fold(tmp_path / "out", tmp_path / "never", mode="shuffle")
