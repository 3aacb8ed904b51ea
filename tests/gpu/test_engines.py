"""Engines on a GPU: built, loaded by the runner, and compared with PyTorch."""

from __future__ import annotations

from pathlib import Path

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
WAYS = [("tensorrt-rtx", "portable"), ("tensorrt", "portable"), ("tensorrt", "plugin")]


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "backend, mode", [("tensorrt-rtx", "portable"), ("tensorrt", "portable"), ("tensorrt", "plugin")]
)
def test_an_engine_computes_what_pytorch_does(spec: ModelSpec, backend: str, mode: str, tmp_path: Path) -> None:
    """float32 without TF32, sums in another order: 1e-3, as `verify` allows."""
    pytest.importorskip(BACKENDS[backend].module, reason=f"{backend} is not installed")
    gpu = find_gpu()
    known = BACKENDS[backend].capabilities
    if gpu is None or (known and gpu.capability not in known):
        pytest.skip(f"{backend} does not know this GPU")
    source = builders.write_checkpoint(tmp_path / "source", spec)
    engine = tmp_path / "tiny.engine"
    pipeline.build(source, engine, backend=backend, mode=mode, shapes="1x1,1x8,2x32", trace=True)
    runner, reference = open_runner(engine), TorchRunner(source)
    found, expected = runner.trace(IDS), reference.trace(IDS)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(np.sort(mine.indices), np.sort(theirs.indices))
    prompt = IDS[0, :5].tolist()
    assert list(greedy(runner, prompt, 8)) == list(greedy(reference, prompt, 8))
