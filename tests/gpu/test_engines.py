"""Engines on a GPU: built, loaded by the runner, and compared with PyTorch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders
from ultramem_deploy import pipeline
from ultramem_deploy.runtime.cuda_driver import find_gpu
from ultramem_deploy.runtime.engine_backends import BACKENDS
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner
from ultramem_deploy.runtime.torch_runner import TorchRunner
from ultramem_deploy.spec import ModelSpec

IDS = np.random.default_rng(8).integers(0, 61, (2, 11))
KINDS = {"v1": builders.V1, "v2": builders.V2, "plus": builders.PLUS, "expanded": builders.EXPANDED}
WAYS = [
    ("tensorrt-rtx", {"mode": "portable"}),
    ("tensorrt", {"mode": "portable"}),
    ("tensorrt", {"mode": "plugin"}),
    ("tensorrt", {"mode": "plugin", "tables": "resource"}),
]
PROGRAM = Path(__file__).parents[2] / "build" / "cpp" / "bin" / "minimal_tensorrt"


def built(folder: Path, spec: ModelSpec, backend: str, **options: Any) -> tuple[Path, Path]:
    """A checkpoint and its engine; a skip where this machine cannot build it."""
    pytest.importorskip(BACKENDS[backend].module, reason=f"{backend} is not installed")
    gpu = find_gpu()
    known = BACKENDS[backend].capabilities
    if gpu is None or (known and gpu.capability not in known):
        pytest.skip(f"{backend} does not know this GPU")
    source = builders.write_checkpoint(folder / "source", spec)
    pipeline.build(source, folder / "tiny.engine", backend=backend, shapes="1x1,1x8,2x32", **options)
    return source, folder / "tiny.engine"


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("backend, options", WAYS)
def test_an_engine_computes_what_pytorch_does(
    spec: ModelSpec, backend: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """float32 without TF32, sums in another order: 1e-3, as `verify` allows."""
    source, engine = built(tmp_path, spec, backend, trace=True, **options)
    runner, reference = open_runner(engine), TorchRunner(source)
    found, expected = runner.trace(IDS), reference.trace(IDS)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(np.sort(mine.indices), np.sort(theirs.indices))
    prompt = IDS[0, :5].tolist()
    assert list(greedy(runner, prompt, 8)) == list(greedy(reference, prompt, 8))


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("options", [options for backend, options in WAYS if backend == "tensorrt"])
def test_the_cpp_program_gives_the_same_tokens(place: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Over tables in device memory and over the mapped file, pinned."""
    if not PROGRAM.is_file():
        pytest.skip("minimal_tensorrt is not built: make cpp")
    source, engine = built(tmp_path, builders.V2, "tensorrt", **options)
    pipeline.bundle(engine, tmp_path / "bundle", runtime="tensorrt", with_plugins=True)
    prompt = IDS[0, :5].tolist()
    command = [PROGRAM, tmp_path / "bundle", ",".join(map(str, prompt)), "8"]
    environment = {**os.environ, "ULTRAMEM_GPU_TABLES": place}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = [int(part) for part in result.stdout.splitlines()[0].split(",")]
    assert found == list(greedy(TorchRunner(source), prompt, 8))
