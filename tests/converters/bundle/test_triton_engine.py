"""The repository for Triton's tensorrt backend, of an engine that its manifest alone describes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from ultramem_deploy import convert, triton_repository
from ultramem_deploy.checkpoint import Checkpoint, source_record
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.bundle_files import table_fingerprint
from ultramem_deploy.runtime.engine_manifest import Manifest, Plugin, TableBinding, manifest_path

ENGINE = b"an engine"
IDS: dict[str, Any] = {"name": "input_ids", "dtype": "int64", "shape": [-1, -1]}
PAST: dict[str, Any] = {"name": "past_key_values.0.key", "dtype": "bfloat16", "shape": [-1, 2, -1, 16]}
LOGITS: dict[str, Any] = {"name": "logits", "dtype": "float32", "shape": [-1, -1, 61]}


def profile(name: str, batch: int) -> dict[str, Any]:
    return {"name": name, "shapes": {"input_ids": {"min": [1, 1], "opt": [1, 8], "max": [batch, 32]}}}


def manifest(directory: Path, *, resource: bool = True, embedded: bool = False) -> Manifest:
    files = source_record(directory).files
    info = Checkpoint.open(directory).tensors["tables.t.values"]
    table = TableBinding(
        tensor="tables.t.values", file=info.file.name, offset=info.offset, nbytes=info.nbytes, dtype="float32",
        shape=list(info.shape), sha256=str(files[info.file.name]["sha256"]),
        fingerprint=table_fingerprint(info.file, info.offset, info.nbytes), resource=resource,
    )  # fmt: skip
    return Manifest(
        format=2, tool="test", identity="0", backend="tensorrt", backend_version="10.14.1.48", cuda="13",
        gpu={"name": "a GPU", "capability": "9.0", "cuda": "13.0"}, mode="plugin", dtype="bfloat16", options={},
        plugin=Plugin(namespace="ultramem", version="1", embedded=embedded),
        engine={"bytes": len(ENGINE), "sha256": hashlib.sha256(ENGINE).hexdigest()}, model=directory.name,
        description="0", inputs=[IDS, PAST], outputs=[LOGITS], profiles=[profile("prefill", 4), profile("decode", 8)],
        operators={}, layers=1, tables={"tables.t.values": table},
    )  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    convert(builders.write_checkpoint(tmp_path / "source", builders.V1), tmp_path / "v1.model")
    engine = tmp_path / "v1.engine"
    engine.write_bytes(ENGINE)
    manifest_path(engine).write_bytes(manifest(tmp_path / "v1.model").to_json())
    (tmp_path / "plugins.so").write_bytes(b"plugins")
    monkeypatch.setenv("ULTRAMEM_TENSORRT_LIBRARY", str(tmp_path / "plugins.so"))
    return engine


def repository(engine: Path) -> Path:
    out = engine.with_name("models")
    triton_repository(engine, out, backend="tensorrt")
    return out


def test_layout(engine: Path) -> None:
    models = repository(engine)
    files = sorted(file.relative_to(models).as_posix() for file in models.rglob("*") if file.is_file())
    assert files == [
        "provenance.json", "ultramem/1/libultramem_tensorrt.so", "ultramem/1/model-memory.safetensors",
        "ultramem/1/model.plan", "ultramem/config.pbtxt",
    ]  # fmt: skip
    assert (models / "ultramem/1/model.plan").read_bytes() == ENGINE
    table = engine.with_name("v1.model") / "model-memory.safetensors"
    assert (models / "ultramem/1" / table.name).stat().st_ino == table.stat().st_ino
    assert triton_repository(engine, models, backend="tensorrt")["up_to_date"]


def test_configuration(engine: Path) -> None:
    """Sizes without the batch; as many requests at once as every profile takes."""
    text = (repository(engine) / "ultramem/config.pbtxt").read_text()
    assert re.findall(r"^(?:input|output) .*$", text, re.MULTILINE) == [
        'input { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }',
        'input { name: "past_key_values.0.key" data_type: TYPE_BF16 dims: [ 2, -1, 16 ] }',
        'output { name: "logits" data_type: TYPE_FP32 dims: [ -1, 61 ] }',
    ]
    assert 'backend: "tensorrt"' in text and "max_batch_size: 4\n" in text
    assert 'instance_group [ { kind: KIND_GPU profile: [ "0", "1" ] } ]' in text


def test_an_engine_with_its_plugins_inside_gets_no_library(engine: Path) -> None:
    held = manifest(engine.with_name("v1.model"), embedded=True)
    manifest_path(engine).write_bytes(held.to_json())
    assert not (repository(engine) / "ultramem/1/libultramem_tensorrt.so").exists()


def test_refusals(engine: Path) -> None:
    directory = engine.with_name("v1.model")
    with pytest.raises(InputError, match="an engine, which the onnxruntime backend does not run: add --triton-backend"):
        triton_repository(engine, engine.with_name("models"))
    with pytest.raises(InputError, match=r"v1\.model: no TensorRT engine: first run `ultramem-deploy build"):
        triton_repository(directory, engine.with_name("models"), backend="tensorrt")
    manifest_path(engine).write_bytes(manifest(directory, resource=False).to_json())
    with pytest.raises(InputError, match=r"table tables\.t\.values is an input.*build it again with --tables resource"):
        repository(engine)
    manifest_path(engine).write_bytes(replace(manifest(directory), backend="tensorrt-rtx").to_json())
    with pytest.raises(InputError, match="an engine for tensorrt-rtx, the server's backend runs those of tensorrt"):
        repository(engine)
    assert not engine.with_name("models").exists()
