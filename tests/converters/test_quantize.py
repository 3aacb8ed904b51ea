"""Quantised tables: codes against float64, layouts byte by byte, models that compute what the codes stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import builders as b
from tests.conftest import Written
from tests.converters.test_fold import arrays
from ultramem_deploy.checkpoint import Checkpoint, read_provenance
from ultramem_deploy.converters.quantize import stage
from ultramem_deploy.converters.quantize.codes import SHRINK, codes, fitted_scales, packed, unpacked
from ultramem_deploy.errors import CheckFailed, ConfigError, InputError
from ultramem_deploy.pipeline import convert, diff, export, fold, generate, heal, patch, plan, quantize, verify
from ultramem_deploy.runtime.torch_runner import TorchRunner
from ultramem_deploy.spec import ModelSpec, TableSpec
from ultramem_deploy.storage import STORAGES

SPECS = {"v1": b.V1, "v2": b.V2, "memory+": b.PLUS, "expanded": b.EXPANDED}
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 12).map(lambda half: 2 * half)),
    elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-1, 1, width=32) | st.just(0.0),
)


def decoded(storage: str, stored: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What a stored table [rows, columns] stands for, float64 [len(scales), width]: an independent reading of it."""
    if storage == "int4":
        flat = stored.reshape(len(scales), -1)
        out = np.empty((len(scales), 2 * flat.shape[1]))
        out[:, 0::2], out[:, 1::2] = flat % 16 - 8.0, flat // 16 - 8.0
    else:
        out = stored.reshape(len(scales), -1).astype(np.float64)
    return out * scales.astype(np.float64)[:, None]


@settings(max_examples=60)
@given(rows=ROWS, storage=st.sampled_from(list(STORAGES)))
def test_codes_are_as_near_as_their_steps_allow(rows: np.ndarray, storage: str) -> None:
    # Numbers below this are flushed: their scale would be a subnormal float32.
    rows = np.where(np.abs(rows) < 1e-30, np.float32(0), rows)
    numbers = codes(storage, rows)
    stored = packed(storage, numbers)
    np.testing.assert_array_equal(
        unpacked(storage, stored), numbers.astype(stored.dtype if storage != "int4" else None)
    )
    found = decoded(storage, stored, fitted_scales(rows, unpacked(storage, stored)))
    off = np.abs(found - rows)
    largest = np.abs(rows).max(1, keepdims=True).astype(np.float64)
    assert (off[largest[:, 0] == 0] == 0).all()
    # Of rounding to the nearest of 255 levels, or to 3 bits behind the first; in squares, never above the row's own.
    bound = {
        "int8": largest / 254 * np.ones_like(rows),
        "float8_e4m3": np.maximum(np.abs(rows) / 16, largest / 448 * 2.0**-10),
    }
    limit = ((bound[storage] * (1 + 1e-5)) ** 2).sum(1) if storage in bound else (rows.astype(np.float64) ** 2).sum(1)
    assert ((off**2).sum(1) <= limit * (1 + 1e-5)).all()


def test_int4_finds_the_scale_that_leaves_the_smallest_error() -> None:
    rows = np.random.default_rng(0).standard_t(4, (64, 48)).astype(np.float32)
    numbers = codes("int4", rows)
    found = ((decoded("int4", packed("int4", numbers), fitted_scales(rows, numbers)) - rows) ** 2).sum(1)
    trials = []
    for shrink in SHRINK:
        step = np.abs(rows.astype(np.float64)).max(1, keepdims=True) * shrink / 7
        q = np.clip(np.rint(rows / step), -8, 7)
        scale = (rows * q).sum(1) / (q * q).sum(1)
        trials.append(((q * scale[:, None] - rows) ** 2).sum(1))
    # float32 sums choose between errors that agree to six digits.
    np.testing.assert_allclose(found, np.min(trials, axis=0), rtol=1e-4)
    plain = np.rint(rows / (np.abs(rows).max(1, keepdims=True) / 7)) * (np.abs(rows).max(1, keepdims=True) / 7)
    assert found.sum() < 0.85 * ((plain - rows) ** 2).sum()


def test_int4_packs_the_even_column_low() -> None:
    row = np.array([[7, -7, 1, 0]], np.float32)
    np.testing.assert_array_equal(packed("int4", codes("int4", row)), [[15 | 1 << 4, 9 | 8 << 4]])


def with_decoded_tables(spec: ModelSpec, source: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The source's tensors with float tables that hold what the quantised ones stand for."""
    tensors = dict(source)
    for name, table in spec.tables.items():
        for part in ("values", "pre_values"):
            key = f"tables.{name}.{part}"
            if key in found:
                numbers = decoded(table.storage, found[key], found[f"{key}_scales"])
                tensors[key] = numbers.reshape(source[key].shape).astype(np.float32)
    return tensors


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_model_computes_what_the_codes_stand_for(
    spec: ModelSpec, storage: str, written: Written, tmp_path: Path
) -> None:
    source, out = written(spec), tmp_path / "out"
    receipt = quantize(source, out, tables=storage)
    before, after = arrays(source), arrays(out)
    described = ModelSpec.load(out)
    assert {table.storage for table in described.tables.values()} == {storage}
    changes = with_decoded_tables(described, before, after)
    ids = np.random.default_rng(1).integers(0, spec.decoder.vocab_size, (1, 40))
    expected = TorchRunner(written(spec, "decoded", changes=changes)).logits(ids)
    # The same sums in float32, the scales multiplied in another order.
    np.testing.assert_allclose(TorchRunner(out).logits(ids), expected, atol=2e-5, rtol=0)
    for one in receipt["tables"]:
        x, y = (t[one["tensor"]].astype(np.float64) for t in (before, changes))
        assert one["relative_rms"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-3)
        errors = np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)
        assert one["worst_row_relative_error"] == pytest.approx(errors.max(), rel=1e-3)
        assert one["worst_row"] == errors.argmax()
        assert one["cosine"] == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-6)
        assert one["bytes_after"] == sum(after[n].nbytes for n in (one["tensor"], f"{one['tensor']}_scales"))
    assert quantize(source, out, tables=storage) == receipt | {"up_to_date": True}


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_exported_both_ways(spec: ModelSpec, storage: str, target: str, written: Written, tmp_path: Path) -> None:
    quantize(written(spec), tmp_path / "out", tables=storage)
    export(tmp_path / "out", tmp_path / "bundle", target=target)
    for runtime in ("ort", "ort-bodies"):
        found = verify(tmp_path / "out", tmp_path / "bundle", runtime=runtime, tokens=64)
        assert found["max_abs"] == 1e-3 and found["index_agreement"] == 1.0


def test_neither_jobs_nor_budget_change_a_byte(written: Written, tmp_path: Path) -> None:
    source = written(b.V2, dtype="bfloat16")
    quantize(source, tmp_path / "one", tables="int4", jobs=1)
    quantize(source, tmp_path / "three", tables="int4", jobs=3, memory_budget="64MiB")
    assert (tmp_path / "one/provenance.json").read_bytes() == (tmp_path / "three/provenance.json").read_bytes()


def test_an_interrupted_run_goes_on_and_its_receipt_is_whole(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(b.V2, tokenizer=True)
    whole = quantize(source, tmp_path / "whole", tables="int8")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage, "fit_and_measure", stop)
        quantize(source, tmp_path / "out", tables="int8")
    resumed = quantize(source, tmp_path / "out", tables="int8")
    assert "model-tables.safetensors" in resumed.pop("resumed") and resumed == whole
    assert (tmp_path / "out/provenance.json").read_bytes() == (tmp_path / "whole/provenance.json").read_bytes()


def test_perplexity_is_told_on_the_text_given(written: Written, tmp_path: Path) -> None:
    source, text = written(b.V1, tokenizer=True), b.write_text(tmp_path / "text.txt")
    receipt = quantize(source, tmp_path / "out", tables="int4", text=text)
    assert receipt["text"] == "text.txt" and receipt["tokens"] == 4096
    found = verify(source, tmp_path / "out", text=text, tokens=512, check=False)
    windows = np.asarray(stage.sample_text(source, text, b.V1).windows)  # type: ignore[union-attr]
    assert windows.shape == (8, 512) and found["tokens"] == 512
    assert receipt["perplexity_before"] != receipt["perplexity_after"]
    assert read_provenance(tmp_path / "out")["receipt"]["text"] == "text.txt"  # type: ignore[index]
    untold = quantize(written(b.V1, "mute"), tmp_path / "mute-out", tables="int4")
    assert untold["perplexity_before"] is None and "no tokenizer" in untold["text"]


def test_folds_before_and_after(written: Written, tmp_path: Path) -> None:
    ordered = replace(b.V1, memory=(b.ultramem_v1(blocks=1, slots=144),), tables={"t": TableSpec(144, 16)})
    for name, spec, mode in (("v1", b.V1, "auto"), ("v2", b.V2, "keys"), ("ordered", ordered, "shuffle")):
        codes_, folded = tmp_path / f"{name}-codes", tmp_path / f"{name}-folded"
        quantize(written(spec, name), codes_, tables="int4")
        fold(codes_, folded, mode=mode)
        verify(codes_, folded, max_abs=1e-4)
    assert ModelSpec.load(tmp_path / "ordered-folded").tables["ordered0"].storage == "int4"
    with pytest.raises(InputError, match="quantised to int4, which expanding would round twice; fold the checkpoint"):
        fold(tmp_path / "v1-codes", tmp_path / "never")
    with pytest.raises(InputError, match="--dtype: the source's tables are quantised"):
        fold(tmp_path / "ordered-codes", tmp_path / "never", mode="shuffle", dtype="float16")
    fold(tmp_path / "v1", tmp_path / "expanded")
    quantize(tmp_path / "expanded", tmp_path / "expanded-codes", tables="int8")
    verify(tmp_path / "expanded", tmp_path / "expanded-codes")


def test_rows_travel_as_a_delta(written: Written, tmp_path: Path) -> None:
    tensors = b.random_tensors(b.V1)["tables.t.values"].copy()
    tensors[5] *= 2
    quantize(written(b.V1), tmp_path / "a", tables="int4")
    quantize(written(b.V1, "other", changes={"tables.t.values": tensors}), tmp_path / "b", tables="int4")
    found = diff(tmp_path / "a", tmp_path / "b", out=tmp_path / "delta")
    assert {name: entry["rows"] for name, entry in found["tensors"].items()} == {"tables.t.values_scales": 1}
    patch(tmp_path / "a", tmp_path / "patched", delta=tmp_path / "delta")
    assert diff(tmp_path / "patched", tmp_path / "b")["identical"]


def test_a_quantised_model_generates_and_converts_to_itself(written: Written, tmp_path: Path) -> None:
    quantize(written(b.V2, tokenizer=True), tmp_path / "out", tables="float8_e4m3")
    assert generate(tmp_path / "out", prompt="the table", max_new_tokens=3)["ids"]
    convert(tmp_path / "out", tmp_path / "again", dtype="bfloat16")
    assert Checkpoint.open(tmp_path / "again").info("tables.t.values").dtype == "float8_e4m3fn"
    assert Checkpoint.open(tmp_path / "again").info("tables.t.values_scales").dtype == "float32"


def test_the_tolerance_against_the_source_is_told_and_holds(written: Written, tmp_path: Path) -> None:
    source = written(b.PLUS)
    quantize(source, tmp_path / "out", tables="int4")
    found = verify(source, tmp_path / "out")
    assert (found["max_abs"], found["kl"], found["tolerance"]) == (None, 0.2, "int4 on one side alone")
    with pytest.raises(CheckFailed, match="max abs logit error"):
        verify(source, tmp_path / "out", max_abs=1e-3)
    other = written(b.PLUS, "other", seed=3)
    quantize(other, tmp_path / "of-another", tables="int4")
    with pytest.raises(CheckFailed, match="mean KL"):
        verify(source, tmp_path / "of-another")


@pytest.mark.parametrize("storage", STORAGES)
def test_the_plan_is_what_is_written(storage: str, written: Written, tmp_path: Path) -> None:
    source = written(b.V2, dtype="bfloat16")
    promised = plan(source, stage="quantize", tables=storage)
    receipt = quantize(source, tmp_path / "out", tables=storage)
    stored = Checkpoint.open(tmp_path / "out").tensors.values()
    assert promised["stages"][0]["output_bytes"] == sum(info.nbytes for info in stored)
    assert promised["layers"][0]["table_bytes_after"] == receipt["bytes_after"]
    bits = STORAGES[storage].bits
    # K rows of D values and P pre-values, a scale for each, K shuffle entries; nothing a batch when it is huge.
    row = (16 + 8) * bits // 8 + 2 * 4
    found = plan(source, stage="quantize", tables=storage, batch=10**9)["layers"][0]["bytes_per_token_after"]
    assert found == {str(10**9): 8 * (row + 8)}


def not_finite(written: Written) -> Path:
    values = b.random_tensors(b.V1)["tables.t.values"].copy()
    values[7, 3] = np.inf
    return written(b.V1, "infinite", changes={"tables.t.values": values})


def test_refusals(written: Written, tmp_path: Path) -> None:
    out, source = tmp_path / "out", written(b.V1, tokenizer=True)
    with pytest.raises(InputError, match="no memory layers, so it has no tables"):
        quantize(written(b.PLAIN, "dense"), out, tables="int8")
    with pytest.raises(InputError, match="--tables: expected one of int8, int4, float8_e4m3, found 'int3'"):
        quantize(source, out, tables="int3")
    with pytest.raises(InputError, match=r"row 7 is not finite, which codes cannot store"):
        quantize(not_finite(written), out, tables="int8")
    with pytest.raises(InputError, match="--memory-budget: one chunk of tensor 'tables.t.values' needs"):
        quantize(source, out, tables="int8", memory_budget=1000)
    quantize(source, tmp_path / "int8", tables="int8")
    with pytest.raises(InputError, match="table 't' is quantised to int8 already; start from the checkpoint"):
        quantize(tmp_path / "int8", out, tables="int4")
    with pytest.raises(InputError, match=r"heal: table 't' \(int8\): a quantised model cannot be trained"):
        heal(tmp_path / "int8", out, steps=1)
    assert not out.exists()


def test_rows_of_odd_width_do_not_become_int4(written: Written, tmp_path: Path) -> None:
    spec = replace(b.PLUS, tables={"t": TableSpec(144, 15)})
    with pytest.raises(ConfigError, match=r"tables\.t\.value_width: int4 packs two numbers a byte, found rows of 15"):
        quantize(written(spec), tmp_path / "out", tables="int4")


def test_a_table_read_in_two_ways_cannot_be_quantised(written: Written, tmp_path: Path) -> None:
    layers = (*b.EXPANDED.memory, b.memory_plus(output_gate=False, kind="pkm", write_block=0, read_block=0))
    spec = replace(b.EXPANDED, memory=layers)
    with pytest.raises(ConfigError, match="needs readers that are all expanded alike or none"):
        quantize(written(spec), tmp_path / "out", tables="int8")
