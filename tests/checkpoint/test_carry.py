from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, Stage, TensorTask, source_record
from ultramem_deploy.checkpoint.carry import carry, staged


def test_whole_shards_are_linked_and_parts_rewritten(source: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    with Stage(first, "make", source_record(source), {}) as stage:
        stage.write_tensors("a", [TensorTask.of("x", np.ones(2, np.float32)), TensorTask.of("y", np.ones(3, np.int8))])
        stage.write_tensors("b", [TensorTask.of("z", np.zeros((2, 2), np.float16))])
    checkpoint = Checkpoint.open(first)
    with Stage(out, "keep", source_record(first), {}) as stage:
        carry(stage, checkpoint, ["x", "z"])
        assert sorted(staged(stage).tensors) == ["x", "z"]
    assert stage.weight_map == {"x": "model-carried.safetensors", "z": "model-b.safetensors"}
    assert os.path.samefile(out / "model-b.safetensors", first / "model-b.safetensors")
    found = Checkpoint.open(out)
    for name in ("x", "z"):
        np.testing.assert_array_equal(found.array(name), checkpoint.array(name))
