"""Engines from C++: the runner over ONNX Runtime in TensorRT's place, and what the program says on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from tests import builders
from tests.cpp.conftest import MODELS, Bundled
from tests.cpp.test_runtime import built, compiled
from ultramem_deploy import pipeline
from ultramem_deploy.converters.bundle import make_bundle
from ultramem_deploy.converters.engine.graph import inline_operators, take_tables_out
from ultramem_deploy.runtime import cuda_driver
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner

PROMPT, NEW, END = [20, 21, 22, 23, 24], 12, 60


@pytest.fixture(scope="session")
def program(cpp: Path) -> Path:
    found = cpp / "bin" / "minimal_tensorrt"
    if not found.is_file():
        pytest.skip("minimal_tensorrt was not built: it needs the CUDA toolkit and TensorRT's headers")
    return found


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a real engine; beside it `source`, and `graph/model.onnx`, which computes the same."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")
    folder = tmp_path_factory.mktemp("engine")
    spec = MODELS["v2"]
    spec = replace(spec, memory=tuple(replace(layer, shuffle=index == 0) for index, layer in enumerate(spec.memory)))
    source = builders.write_checkpoint(folder / "source", spec)
    pipeline.build(source, folder / "v2.engine", backend="tensorrt-rtx", shapes="1x3,1x6,2x24")
    make_bundle(folder / "v2.engine", folder / "bundle", runtime="tensorrt")
    model = onnx.load(folder / "v2.model" / "model.onnx", load_external_data=False)
    take_tables_out(model)
    (folder / "graph").mkdir()
    onnx.save(inline_operators(model), folder / "graph" / "model.onnx")
    for weights in (folder / "v2.model").glob("*.safetensors"):
        os.link(weights, folder / "graph" / weights.name)
    return folder / "bundle"


def test_the_same_tokens_as_pytorch(engine: Path, program: Path, cpp: Path, tmp_path: Path) -> None:
    """And every refusal, under AddressSanitizer and UBSan; LeakSanitizer sometimes crashes beside ONNX Runtime."""
    tests = compiled(built("address,undefined"), "engine_tests")
    bundle = Path(shutil.copytree(engine, tmp_path / "bundle"))
    document = json.loads((bundle / "manifest.json").read_text())
    document["engine"]["longest"] = 8  # so that a short prompt goes in pieces
    (bundle / "manifest.json").write_text(json.dumps(document))
    arguments = [tests, bundle, engine.with_name("graph") / "model.onnx", ",".join(map(str, PROMPT)), str(NEW)]
    lean = find_spec("tensorrt_lean_libs")
    if lean is not None and lean.submodule_search_locations:
        arguments += [next(Path(lean.submodule_search_locations[0]).glob("libnvinfer_lean.so.*"))]
    environment = {
        **os.environ,
        "ULTRAMEM_ONNXRUNTIME": str(cpp / "lib" / "libonnxruntime.so.1"),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    expected = list(greedy(open_runner(engine.with_name("source"), "torch"), PROMPT, NEW, (END,)))
    assert len(expected) > 4
    assert [int(part) for part in result.stdout.splitlines()[-1].split(",")] == expected


def said(program: Path, *arguments: object) -> tuple[int, str]:
    result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.returncode, result.stderr


@pytest.mark.skipif(cuda_driver.find_gpu() is not None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(engine: Path, program: Path) -> None:
    code, text = said(program, engine, "20,21", 4)
    assert code == 1 and text.startswith("error: no NVIDIA GPU or driver on this machine, which an engine needs (")
    assert text.endswith("run it where `nvidia-smi` lists a GPU\n")


def test_what_it_does_not_run(engine: Path, program: Path, bundled: Bundled, tmp_path: Path) -> None:
    assert said(program)[0] == 2
    code, text = said(program, tmp_path, "1", 1)
    assert code == 1 and "holds no manifest.json" in text
    code, text = said(program, bundled("v2"), "1", 1)
    assert code == 1 and "a bundle for onnxruntime, this runs tensorrt: bundle again with --runtime tensorrt" in text
    damaged = Path(shutil.copytree(engine, tmp_path / "damaged"))
    (damaged / "model.engine").unlink()
    code, text = said(program, damaged, "1", 1)
    assert code == 1 and "model.engine is missing; copy the whole bundle" in text
