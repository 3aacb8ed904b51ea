"""Folding the implicit value expansion: equal outputs, rows rounded once, linked shards, bytes that do not vary."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ultramem_deploy
from tests import builders as b
from tests.conftest import Written
from tests.formulas_memory import norm
from tests.model.test_memory import changed, layers
from ultramem_deploy.checkpoint import Checkpoint, numpy_dtype, read_provenance
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import fold, verify
from ultramem_deploy.spec import ModelSpec, TableSpec

FOLDABLE = {
    "v1": b.V1,
    **{f"v1 E={e}": changed(b.V1, blocks=e, row_keys=12, col_keys=3 * e, slots=36) for e in (1, 2, 3)},
    "v1 no shuffle": changed(b.V1, shuffle=False),
    "v1 no key norm": changed(b.V1, key_norm=None),
    "v1 empty slot": changed(b.V1, slots=4, row_keys=4, col_keys=4, empty_slot=9),
    "v2 empty slot": changed(b.V2, slots=4, row_keys=4, col_keys=4, empty_slot=9, token_gate=True),
    "v2": b.V2,
    "v2 blocks apart": changed(b.V2, sum_blocks=False),
    "v2 swiglu": changed(b.V2, gate_activation="swiglu"),
    "v2 no gate": changed(b.V2, {"t": TableSpec(60, 16)}, gate_activation="none"),
    "pkm": b.PKM,
}


def expanded_rows(spec: ModelSpec, index: int, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """F[j, c] = W_p(sigma(j))[:, columns of c] . V[row(sigma(j)), columns of c] in float64, one slot at a time."""
    layer, hidden = spec.memory[index], spec.decoder.hidden_size
    values = tensors[f"tables.{layer.table}.values"].astype(np.float64)
    weight = tensors[f"memory.{index}.output.weight"].astype(np.float64)
    rows, width = values.shape
    part = width // layer.cores
    out = np.empty((layer.virtual_slots, layer.cores, hidden))
    for j in range(layer.virtual_slots):
        sigma = int(tensors[f"memory.{index}.shuffle"][j]) if layer.shuffle else j
        block = 0 if layer.sum_blocks else sigma // layer.slots
        row = (sigma % layer.slots + layer.offset) % rows
        for c in range(layer.cores):
            columns = slice(c * part, (c + 1) * part)
            out[j, c] = weight[:, block * width :][:, columns] @ values[row, columns] * (sigma != layer.empty_slot)
    return out.reshape(layer.virtual_slots, -1)


def arrays(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(directory)
    return {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}


def assert_folded(spec: ModelSpec, source: Path, out: Path, dtype: str) -> None:
    before, after = arrays(source), arrays(out)
    for index, layer in enumerate(spec.memory):
        table = after[f"tables.expanded{index}.values"]
        truth = expanded_rows(spec, index, before)
        assert table.dtype == numpy_dtype(dtype)
        # Half a unit in the last place of the dtype, and the float64 sums' own rounding.
        step = 2.0 ** -{"float32": 24, "bfloat16": 8, "float16": 11}[dtype]
        error = np.abs(table.astype(np.float64) - truth)
        assert (error <= step * np.abs(truth) * (1 + 1e-6) + 6e-8 * (dtype == "float16") + 1e-12).all()
        for side in ("row_keys", "col_keys"):
            keys = before[f"memory.{index}.{side}"].astype(np.float64)
            own = {n.removeprefix(f"memory.{index}."): t.astype(np.float64) for n, t in before.items()}
            found = after[f"memory.{index}.{side}"]
            assert found.dtype == (np.float32 if layer.key_norm else before[f"memory.{index}.{side}"].dtype)
            truth = norm(keys, layer.key_norm, own, "key_norm")
            np.testing.assert_allclose(found.astype(np.float64), truth, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spec", FOLDABLE.values(), ids=FOLDABLE)
def test_folded_equals_unfolded(spec: ModelSpec, written: Written, tmp_path: Path) -> None:
    source, out = written(spec), tmp_path / "out"
    receipt = fold(source, out)
    assert_folded(spec, source, out, "float32")
    left = {name for name in arrays(out) if name.endswith(("shuffle", "output.weight", "key_norm.weight"))}
    assert not left and not any(name.startswith("tables.t.") for name in arrays(out))
    assert receipt["max_relative_error"] < 1e-6 and receipt["min_index_agreement"] > 0.999
    assert len(receipt["layers"]) == len(spec.memory)
    found = verify(source, out, tokens=100, max_abs=1e-4)
    assert found["index_agreement"] == 1.0 and found["compared_memory_layers"] == len(spec.memory)
    provenance = read_provenance(out)
    assert provenance is not None and provenance["receipt"] | {"up_to_date": False} == receipt
    assert fold(source, out) == receipt | {"up_to_date": True}, "the recorded receipt"


@settings(max_examples=12)
@given(layers(), st.integers(0, 2**16), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_any_size_folds(tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, seed: int, dtype: str) -> None:
    folder = tmp_path_factory.mktemp("fold")
    source = b.write_checkpoint(folder / "model", spec, seed=seed)
    receipt = fold(source, folder / "out", dtype=dtype)
    assert_folded(spec, source, folder / "out", dtype)
    limit = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    # The smallest layers tie: a flip there says nothing about the fold.
    assert receipt["max_relative_error"] < limit or receipt["min_index_agreement"] < 1


@pytest.mark.parametrize(
    ("stored", "option", "expected"),
    [("bfloat16", "keep", "bfloat16"), ("bfloat16", "float32", "float32"), ("float32", "float16", "float16")],
)
def test_dtypes(written: Written, tmp_path: Path, stored: str, option: str, expected: str) -> None:
    source, out = written(b.V2, dtype=stored), tmp_path / "out"
    receipt = fold(source, out, dtype=option)
    assert_folded(b.V2, source, out, expected)
    assert receipt["min_index_agreement"] == 1.0, "keys were rounded"
    after = arrays(out)
    assert after["tables.expanded0.pre_values"].dtype == numpy_dtype(stored)
    assert after["memory.0.core"].dtype == numpy_dtype(stored)
    load(out)(torch.zeros(1, 3, dtype=torch.int64))


def test_rows_are_rounded_once(written: Written, tmp_path: Path) -> None:
    """1 + 2**-8 + 2**-40 lies just above a bfloat16 tie: a stop in float32 would lose the last bit and round down."""
    spec = changed(b.V1, {"t": TableSpec(36, 4)}, shuffle=False)
    values = np.zeros((36, 4), np.float32)
    values[:, 0], values[:, 1] = 1, 2.0**-20
    weight = np.zeros((32, 16), np.float32)
    weight[:, ::4], weight[:, 1::4] = 1 + 2.0**-8, 2.0**-20
    source = written(spec, changes={"tables.t.values": values, "memory.0.output.weight": weight})
    fold(source, tmp_path / "out", dtype="bfloat16")
    exact = Fraction(1) + Fraction(1, 2**8) + Fraction(1, 2**40)
    assert exact > Fraction(1) + Fraction(1, 2**8)
    found = arrays(tmp_path / "out")["tables.expanded0.values"].astype(np.float64)
    assert set(found[:, :32].reshape(-1)) == {1 + 2.0**-7}


def test_values_that_do_not_fit_are_refused(written: Written, tmp_path: Path) -> None:
    values = np.full((36, 16), 1e4, np.float32)
    source = written(b.V1, changes={"tables.t.values": values * 100})
    with pytest.raises(InputError, match=r"memory layer 0.*do not fit float16"):
        fold(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


REFUSED = {
    "memory+": (b.PLUS, "layer 0 .memory_plus. cannot be expanded: a silu gate stands between"),
    "folded": (b.EXPANDED, "layer 0 is already expanded; start from the unfolded"),
    "dense": (b.PLAIN, "has no memory layers; upcycle it"),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(spec: ModelSpec, message: str, written: Written, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fold(written(spec), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("name", "value"), [("mode", "shrink"), ("dtype", "int8")])
def test_unknown_options(written: Written, tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"--{name}: expected one of .*, found '{value}'"):
        fold(written(b.V1), tmp_path / "out", **{name: value})  # type: ignore[arg-type]


def test_decoder_shards_are_linked(written: Written, tmp_path: Path) -> None:
    source = written(b.V1, tokenizer=True)
    fold(source, tmp_path / "out")
    name = "model-decoder.safetensors"
    assert (source / name).samefile(tmp_path / "out" / name)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_mixed_shards_are_split(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = b.write_checkpoint(tmp_path / "model", b.V1)
    whole = {n: t for f in source.glob("*.safetensors") for n, t in load_file(f).items()}
    one = tmp_path / "one"
    one.mkdir()
    save_file(whole, one / "model.safetensors")
    (one / "config.json").write_bytes((source / "config.json").read_bytes())
    fold(one, tmp_path / "from_one")
    fold(source, tmp_path / "from_two")
    left, right = arrays(tmp_path / "from_one"), arrays(tmp_path / "from_two")
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def big(cores: int = 2) -> ModelSpec:
    """A model whose expanded table needs many chunks."""
    layer = b.ultramem_v1(row_keys=128, col_keys=128, slots=4096, cores=cores)
    wide = b.decoder(hidden_size=512, intermediate_size=16, vocab_size=9)
    return replace(b.V1, decoder=wide, memory=(layer,), tables={"t": TableSpec(4096, 32)})


def test_bytes_do_not_depend_on_jobs(tmp_path: Path) -> None:
    source = b.write_checkpoint(tmp_path / "model", big())
    files: dict[int, dict[str, bytes]] = {}
    for jobs in (1, 3):
        fold(source, tmp_path / f"out{jobs}", jobs=jobs)
        files[jobs] = {f.name: f.read_bytes() for f in (tmp_path / f"out{jobs}").iterdir()}
    assert files[1] == files[3]


SLOW_FOLD = """
import sys, time
from pathlib import Path
from ultramem_deploy.converters.fold.expand import ExpandedLayer
from ultramem_deploy.pipeline import fold
rows = ExpandedLayer._rows
def slow(self, dtype, start, stop):
    if start > 0:
        Path(sys.argv[2] + ".marker").touch()
        time.sleep(60)
    return rows(self, dtype, start, stop)
ExpandedLayer._rows = slow
fold(sys.argv[1], sys.argv[2])
"""


def test_killed_and_run_again(tmp_path: Path) -> None:
    source, out = b.write_checkpoint(tmp_path / "model", big()), tmp_path / "out"
    root = Path(ultramem_deploy.__file__).parents[1]
    process: Any = subprocess.Popen([sys.executable, "-c", SLOW_FOLD, str(source), str(out)], cwd=root)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.marker").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    receipt = fold(source, out)
    fold(source, tmp_path / "whole")
    names = sorted(file.name for file in out.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "whole").iterdir())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert receipt["max_relative_error"] < 1e-5 and not (tmp_path / "out.partial").exists()


def test_a_fold_that_does_not_preserve_is_not_published(tmp_path: Path) -> None:
    source = b.write_checkpoint(tmp_path / "source", b.V1)
    name = next(n for n in b.random_tensors(b.V1) if n.endswith(".values"))
    huge = b.random_tensors(b.V1)[name] * np.float32(1e37)
    changed = b.write_checkpoint(tmp_path / "huge", b.V1, changes={name: huge})
    assert fold(source, tmp_path / "fine")["layers"][0]["table_dtype"] == "float32"
    with pytest.raises(CheckFailed, match="memory layer 0 is not preserved"):
        fold(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
