"""The model repository for Triton: its layout, its configuration against the graph, and that the model in it runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests import builders
from ultramem_deploy.converters.bundle import make_triton
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.spec import ModelSpec

PORT = re.compile(r'^(input|output) \{ name: "([^"]+)" data_type: TYPE_(\w+) dims: \[ ([-\d, ]+) \] \}$', re.MULTILINE)
TYPES = {"FP32": "tensor(float)", "INT64": "tensor(int64)"}


def repository(tmp_path: Path, spec: ModelSpec) -> Path:
    export_onnx(builders.write_checkpoint(tmp_path / "checkpoint", spec), tmp_path / "onnx")
    make_triton(tmp_path / "onnx", tmp_path / "models")
    return tmp_path / "models"


def test_layout(tmp_path: Path) -> None:
    models = repository(tmp_path, builders.V1)
    files = sorted(file.relative_to(models).as_posix() for file in models.rglob("*") if file.is_file())
    assert files == [
        "provenance.json", "ultramem/1/libultramem_ort.so", "ultramem/1/model-decoder.safetensors",
        "ultramem/1/model-export.safetensors", "ultramem/1/model-memory.safetensors", "ultramem/1/model.onnx",
        "ultramem/config.pbtxt",
    ]  # fmt: skip
    shard = "model-memory.safetensors"
    assert (models / "ultramem/1" / shard).stat().st_ino == (tmp_path / "onnx" / shard).stat().st_ino
    plain = (repository(tmp_path / "plain", builders.PLAIN) / "ultramem/config.pbtxt").read_text()
    assert "op_library_filename" not in plain


def test_configuration_is_the_graphs_own(tmp_path: Path) -> None:
    """Names, types and shapes as ONNX Runtime itself reports them for the model in the repository, batch apart."""
    models = repository(tmp_path, builders.V1)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(models / "ultramem/1/libultramem_ort.so"))
    session = ort.InferenceSession(str(models / "ultramem/1/model.onnx"), options, providers=["CPUExecutionProvider"])
    config = (models / "ultramem/config.pbtxt").read_text()
    found = [(kind, name, TYPES[kind_of], [int(d) for d in dims.split(",")]) for kind, name, kind_of, dims in
             PORT.findall(config)]  # fmt: skip
    expected = [
        (kind, port.name, port.type, [size if isinstance(size, int) else -1 for size in port.shape[1:]])
        for kind, ports in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for port in ports
    ]
    assert found == expected and 'backend: "onnxruntime"' in config and "dynamic_batching" in config
    ids = np.arange(6).reshape(2, 3)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds |= {p.name: np.zeros((2, 2, 0, 16), np.float32) for p in session.get_inputs() if p.name not in feeds}
    logits = session.run(["logits"], feeds)[0]
    np.testing.assert_allclose(
        logits, OrtRunner(tmp_path / "onnx").logits(ids), atol=1e-5
    )  # float32, another batch path


def test_refusals(tmp_path: Path) -> None:
    checkpoint = builders.write_checkpoint(tmp_path / "checkpoint", builders.PLAIN)
    with pytest.raises(InputError, match="a checkpoint, not an export"):
        make_triton(checkpoint, tmp_path / "models")
