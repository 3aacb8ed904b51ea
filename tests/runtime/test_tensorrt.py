"""The runner of engines: what it checks before it loads, and what it hands to TensorRT step by step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests import builders
from tests.runtime.fake_tensorrt import Engine
from ultramem_deploy import pipeline
from ultramem_deploy.converters.engine.graph import show_memory
from ultramem_deploy.converters.engine.precision import to_half
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime import cuda_driver, engine_manifest
from ultramem_deploy.runtime.engine_backends import TENSORRT, TENSORRT_RTX
from ultramem_deploy.runtime.engine_manifest import check_machine, manifest_path, read_manifest
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner
from ultramem_deploy.runtime.tensorrt import TensorRTRunner
from ultramem_deploy.runtime.tensorrt_engine import LoadedEngine, load_tables
from ultramem_deploy.runtime.torch_runner import TorchRunner
from ultramem_deploy.spec import ModelSpec

CPU = torch.device("cpu")
IDS = np.random.default_rng(8).integers(0, 61, (2, 11))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine of each memory kind: NAME.engine and its source NAME."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")
    folder = tmp_path_factory.mktemp("engines")
    for name, spec in {"v1": builders.V1, "v2": builders.V2, "expanded": builders.EXPANDED}.items():
        builders.write_checkpoint(folder / name, spec, tokenizer=True)
        pipeline.build(
            folder / name, folder / f"{name}.engine", backend="tensorrt-rtx", shapes="1x3,1x6,2x16", trace=True
        )
    return folder


def runner(engine: Path, dtype: str = "float32") -> tuple[TensorRTRunner, Engine]:
    """The real runner over an engine's real manifest and tables, with ONNX Runtime behind TensorRT's methods."""
    manifest, directory = read_manifest(engine), engine_manifest.model_path(engine)
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    spec = ModelSpec.load(directory)
    show_memory(model, spec)
    if dtype != "float32":
        to_half(model, dtype)
        ports = [[{**p, "dtype": dtype} if "key_values" in p["name"] or "present" in p["name"] else p for p in side]
                 for side in (manifest.inputs, manifest.outputs)]  # fmt: skip
        manifest = replace(manifest, inputs=ports[0], outputs=ports[1])
    fake = Engine(directory, model, manifest.profiles)
    loaded = LoadedEngine(fake, manifest, load_tables(directory, manifest.tables, CPU), CPU)
    return TensorRTRunner(spec, loaded), fake


@pytest.mark.parametrize("name", ["v1", "v2", "expanded"])
def test_logits_and_choices_are_those_of_pytorch(engines: Path, name: str) -> None:
    """The same float32 arithmetic in another order: 1e-4, as the bundles are held to."""
    expected = TorchRunner(engines / name).trace(IDS)
    found = runner(engines / f"{name}.engine")[0].trace(IDS)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(np.sort(mine.indices), np.sort(theirs.indices))
        np.testing.assert_allclose(mine.output, theirs.output, atol=1e-4)


def test_pieces_follow_the_profiles(engines: Path) -> None:
    """Prefill takes 3 to 16 tokens: what is left of a prompt goes one by one, and so does what is generated."""
    model, fake = runner(engines / "v1.engine")
    whole = model.logits(IDS[:1])
    session = model.session()
    fake.used.clear()
    last = [session.feed(part) for part in np.split(IDS[:1], [2, 7, 8], axis=1)][-1]
    assert fake.used == ["decode", "decode", "prefill", "decode", "prefill"]
    np.testing.assert_allclose(last, whole[:, -1], atol=1e-4)


def test_generation_is_that_of_pytorch(engines: Path) -> None:
    prompt = IDS[0, :5].tolist()
    expected = list(greedy(TorchRunner(engines / "v2"), prompt, 6))
    assert list(greedy(runner(engines / "v2.engine")[0], prompt, 6)) == expected


def test_a_half_cache_is_kept_in_its_type(engines: Path) -> None:
    model, _ = runner(engines / "v1.engine", "float16")
    session: Any = model.session()
    assert np.isfinite(session.feed(IDS)).all()
    assert {tensor.dtype for tensor in session._cache.values()} == {torch.float16}


def test_what_an_engine_does_not_take_is_an_error(engines: Path) -> None:
    model, _ = runner(engines / "v1.engine")
    with pytest.raises(InputError, match=r"input_ids: \[3, 11\] is outside .*--shapes"):
        model.logits(np.repeat(IDS[:1], 3, 0))
    with pytest.raises(InputError, match="32 tokens: the engine was built for 16; build it with --shapes"):
        model.logits(np.repeat(IDS, 3, 1))
    with pytest.raises(InputError, match="outside the vocabulary"):
        model.logits(np.array([[61]]))
    with pytest.raises(InputError, match="at least one of each"):
        model.session().feed(np.empty((1, 0), np.int64))


def test_tables_are_shared_in_a_process(engines: Path) -> None:
    manifest, directory = read_manifest(engines / "v1.engine"), engines / "v1.model"
    first, second = (load_tables(directory, manifest.tables, CPU) for _ in range(2))
    assert all(first[name] is second[name] for name in manifest.tables)


def test_a_place_that_does_not_exist_is_named(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAMEM_GPU_TABLES", "disk")
    manifest = read_manifest(engines / "expanded.engine")
    with pytest.raises(InputError, match="ULTRAMEM_GPU_TABLES: expected auto, device or host, found 'disk'"):
        load_tables(engines / "expanded.model", manifest.tables, CPU)


@pytest.mark.skipif(cuda_driver.find_gpu() is not None, reason="this machine has a GPU")
def test_without_a_driver_it_refuses_by_name(engines: Path) -> None:
    with pytest.raises(InputError, match="--backend tensorrt-rtx: no NVIDIA GPU or driver on this machine"):
        open_runner(engines / "v1.engine")
    with pytest.raises(InputError, match="an engine runs in TensorRT alone"):
        open_runner(engines / "v1.engine", "ort")
    with pytest.raises(InputError, match="no TensorRT engine: run `ultramem-deploy build` first"):
        open_runner(engines / "v1", "tensorrt")


GPUS = {
    "L4": cuda_driver.Gpu("NVIDIA L4", "8.9", "13.0"),
    "A100": cuda_driver.Gpu("NVIDIA A100", "8.0", "13.0"),
    "H100": cuda_driver.Gpu("NVIDIA H100", "9.0", "13.0"),
    "V100": cuda_driver.Gpu("NVIDIA V100", "7.0", "12.8"),
}


@pytest.mark.parametrize("built_on, found, options, said", [
    ("L4", "L4", {}, None),
    ("L4", "H100", {}, r"built on NVIDIA L4 \(compute capability 8\.9\), found NVIDIA H100 \(9\.0\); build it again"),
    ("L4", "H100", {"hardware_compatible": True}, None),
    ("L4", "V100", {"hardware_compatible": True}, "needs compute capability 8.0 or newer; NVIDIA V100 has 7.0"),
])  # fmt: skip
def test_the_gpu_is_enforced(
    engines: Path, monkeypatch: pytest.MonkeyPatch, built_on: str, found: str, options: dict[str, Any], said: str | None
) -> None:
    check_with_gpu(engines, monkeypatch, TENSORRT, built_on, found, options, said)


@pytest.mark.parametrize("found, said", [
    ("A100", None),
    ("H100", "tensorrt-rtx runs on compute capabilities 7.5, .*; NVIDIA H100 has 9.0: build with --backend tensorrt"),
])  # fmt: skip
def test_rtx_engines_run_on_the_gpus_it_knows(
    engines: Path, monkeypatch: pytest.MonkeyPatch, found: str, said: str | None
) -> None:
    check_with_gpu(engines, monkeypatch, TENSORRT_RTX, "L4", found, {}, said)


def check_with_gpu(
    engines: Path, monkeypatch: pytest.MonkeyPatch, backend: Any, built_on: str, found: str, options: Any, said: Any
) -> None:
    stand_in = replace(backend, module="tensorrt_rtx")
    monkeypatch.setattr(engine_manifest, "find_backend", lambda name: stand_in)
    monkeypatch.setattr("ultramem_deploy.runtime.engine_backends.find_gpu", lambda: GPUS[found])
    held = read_manifest(engines / "v1.engine")
    manifest = replace(held, gpu=vars(GPUS[built_on]), options={**held.options, **options})
    if said is None:
        assert check_machine(Path("x.engine"), manifest)[2] == GPUS[found]
        return
    with pytest.raises(InputError, match=said):
        check_machine(Path("x.engine"), manifest)


def test_another_version_says_what_to_install(engines: Path) -> None:
    manifest = replace(read_manifest(engines / "v1.engine"), backend_version="1.5.0.114")
    with pytest.raises(InputError, match=r"built by tensorrt-rtx 1\.5\.0\.114, found .*pip install 'tensorrt-rtx-cu\d"):
        check_machine(Path("x.engine"), manifest)


@pytest.fixture
def copied(engines: Path, tmp_path: Path) -> Path:
    """v1's engine and what belongs to it, apart."""
    for name in ("v1.engine", "v1.engine.json"):
        shutil.copy2(engines / name, tmp_path)
    shutil.copytree(engines / "v1.model", tmp_path / "v1.model")
    return tmp_path / "v1.engine"


def test_the_three_parts_move_together(copied: Path) -> None:
    manifest = read_manifest(copied)
    engine_manifest.check_engine(copied, manifest)
    assert engine_manifest.check_model(copied, manifest) == copied.parent / "v1.model"


@pytest.mark.parametrize("damage, said", [
    (lambda e: e.write_bytes(e.read_bytes()[:-1]), "its manifest says .* bytes, found .* bytes"),
    (lambda e: e.write_bytes(b"x" * e.stat().st_size), "not the engine that v1.engine.json describes"),
    (lambda e: shutil.rmtree(e.parent / "v1.model"), "v1.model/ with its tables is not beside it"),
    (lambda e: manifest_path(e).unlink(), "its manifest v1.engine.json is not beside it"),
    (lambda e: manifest_path(e).write_text("{}"), "format None, this release reads 2"),
    (lambda e: manifest_path(e).write_text('{"format": 2}'), "Field required; build the engine again|Missing"),
    (lambda e: next((e.parent / "v1.model").glob("model-memory*")).unlink(), "model-memory.*cannot be read|missing"),
    (lambda e: next((e.parent / "v1.model").glob("model-memory*")).write_bytes(b"0" * 99), "changed|not the one"),
])  # fmt: skip
def test_damage_is_named(copied: Path, damage: Any, said: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=said):
        manifest = read_manifest(copied)
        engine_manifest.check_engine(copied, manifest)
        engine_manifest.check_model(copied, manifest)
