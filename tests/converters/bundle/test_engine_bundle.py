"""Bundles whose graph is a TensorRT engine, built for real by tensorrt-rtx, which needs no GPU for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from ultramem_deploy import pipeline
from ultramem_deploy.bundle_diagnosis import examine
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.bundle import check_bundle, make_bundle
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.runtime import cuda_driver
from ultramem_deploy.runtime.bundle_files import table_fingerprint
from ultramem_deploy.runtime.opening import home, open_runner
from ultramem_deploy.runtime.ort import OrtRunner


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")
    folder = tmp_path_factory.mktemp("engine")
    source = builders.write_checkpoint(folder / "source", builders.V2, tokenizer=True)
    pipeline.build(source, folder / "v2.engine", backend="tensorrt-rtx", shapes="1x2,1x8,2x32", dtype="bfloat16")
    return folder / "v2.engine"


@pytest.fixture
def bundle(engine: Path, tmp_path: Path) -> Path:
    make_bundle(engine, tmp_path / "bundle", runtime="tensorrt", copy=True)
    return tmp_path / "bundle"


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "manifest.json").read_text()))


def test_golden_layout(bundle: Path, engine: Path) -> None:
    assert sorted(file.name for file in bundle.iterdir()) == [
        "config.json", "manifest.json", "model-memory.safetensors", "model.engine", "model.engine.json",
        "provenance.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    found = manifest(bundle)
    assert (found["format"], found["schema"], found["runtime"]) == ("ultramem-bundle", 1, "tensorrt")
    assert sorted(found["requires"]) == ["operators", "plugin", "tensorrt-rtx"]
    assert found["graph"] == {
        "file": "model.engine", "target": "portable", "cache": "appended", "positions": 32, "prefill_chunk": 32,
        "uses_operators": False,
    }  # fmt: skip
    called = found["engine"]
    assert sorted(called) == [
        "backend", "bindings", "cache_item_bytes", "caches", "capabilities", "context", "embeds_plugin",
        "least_capability", "longest", "shortest", "version", "version_compatible", "weight_streaming",
    ]  # fmt: skip
    assert (called["shortest"], called["longest"], called["context"], called["cache_item_bytes"]) == (2, 32, 32, 2)
    assert called["caches"][3] == {
        "input": "past_key_values.1.value", "output": "present.1.value", "heads": 2, "width": 16,
    }  # fmt: skip
    assert "8.9" in called["capabilities"] and called["least_capability"] is None
    assert (bundle / "model.engine").read_bytes() == engine.read_bytes()
    assert str(engine.parent) not in (bundle / "manifest.json").read_text()


def test_every_table_that_the_engine_reads_is_bound(bundle: Path, engine: Path) -> None:
    found, source = manifest(bundle), Checkpoint.open(engine.with_name("v2.model")).tensors
    tables = {table["name"]: table for table in found["tables"]}
    names = {"tables.t.values", "tables.t.pre_values", "memory.0.shuffle", "memory.1.shuffle"}
    assert set(tables) == set(found["engine"]["bindings"].values()) == names
    for name, table in tables.items():
        data = (bundle / table["file"]).read_bytes()[table["offset"] :][: table["bytes"]]
        info = source[name]
        assert data == info.file.read_bytes()[info.offset :][: info.nbytes]
        assert table["fingerprint"] == table_fingerprint(bundle / table["file"], table["offset"], table["bytes"])
        assert table["rows_per_token"] == 8 * (1 if name.endswith("shuffle") else 2)


def test_it_moves_and_checks_and_resumes(bundle: Path, engine: Path, tmp_path: Path) -> None:
    moved = bundle.rename(tmp_path / "moved elsewhere")
    assert check_bundle(moved)["runtime"] == "tensorrt"
    assert make_bundle(engine, moved, runtime="tensorrt", copy=True)["up_to_date"]
    linked = make_bundle(engine, tmp_path / "linked", runtime="tensorrt")
    assert linked["weights"] == {"model-memory.safetensors": "hardlink"} and not linked["plugins"]
    assert linked["tables"] == 4 and linked["tokenizer"]


@pytest.mark.parametrize("name", ["model.engine", "model-memory.safetensors", "model.engine.json", "config.json"])
def test_damage_is_found(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(CheckFailed, match=f"{name}: SHA-256"):
        check_bundle(bundle)


@pytest.mark.skipif(cuda_driver.find_gpu() is not None, reason="this machine has a GPU")
def test_the_python_runner_opens_it(bundle: Path) -> None:
    """As far as the machine allows: what stops it is the missing GPU."""
    assert home(bundle) == bundle
    with pytest.raises(InputError, match="--backend tensorrt-rtx: no NVIDIA GPU or driver on this machine"):
        open_runner(bundle)
    with pytest.raises(InputError, match="an engine runs in TensorRT alone"):
        open_runner(bundle, "ort")
    with pytest.raises(InputError, match="holds no model.onnx"):
        OrtRunner(bundle)


def test_refusals(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no TensorRT engine: first run `ultramem-deploy build"):
        make_bundle(engine.with_name("v2.model"), tmp_path / "out", runtime="tensorrt")
    copied = Path(shutil.copy2(engine, tmp_path / "v2.engine"))
    with pytest.raises(InputError, match="its manifest v2.engine.json is not beside it"):
        make_bundle(copied, tmp_path / "out", runtime="tensorrt")
    shutil.copy2(engine.with_name("v2.engine.json"), tmp_path)
    with pytest.raises(InputError, match="v2.model/ with its tables is not beside it"):
        make_bundle(copied, tmp_path / "out", runtime="tensorrt")
    copied.write_bytes(copied.read_bytes()[:-1])
    with pytest.raises(InputError, match="its manifest says"):
        make_bundle(copied, tmp_path / "out", runtime="tensorrt")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(cuda_driver.find_gpu() is not None, reason="this machine has a GPU")
def test_doctor_tells_what_is_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed() -> dict[str, str]:
        return {check.name: check.found for check in examine(bundle) if check.required and not check.ok}

    assert list(failed()) == ["engine"] and "no NVIDIA GPU or driver on this machine" in failed()["engine"]
    document = manifest(bundle)
    document["graph"]["uses_operators"] = True
    (bundle / "manifest.json").write_text(json.dumps(document))
    monkeypatch.setenv("ULTRAMEM_TENSORRT_LIBRARY", str(bundle / "config.json"))
    assert "is not an UltraMem library" in failed()["engine's plugin"]
    (bundle / "model.engine").unlink()
    assert failed() == {"files": "model.engine is missing"}
