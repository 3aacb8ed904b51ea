"""What a bundle holds, where its bytes are, and what export refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import builders
from tests.converters.onnx.conftest import Exported
from ultramem_deploy.checkpoint import Checkpoint, read_header
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.converters.onnx.weights import EXPORT_FILE
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.model import load
from ultramem_deploy.runtime.ort import OrtRunner

IDS = np.random.default_rng(3).integers(0, 61, (1, 6))


def initializers(bundle: Path) -> list[tuple[onnx.TensorProto, dict[str, str]]]:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    return [(tensor, {e.key: e.value for e in tensor.external_data}) for tensor in model.graph.initializer]


@pytest.mark.parametrize("case", ["memory-v1", "memory-expanded", "memory-memory_plus"])
def test_weights_are_ranges_of_the_checkpoint(case: str, exported: Exported) -> None:
    source, bundle = exported(case, "ort")
    spans = {(t.file.name, t.offset, t.nbytes) for t in Checkpoint.open(source).tensors.values()}
    spans |= {(EXPORT_FILE, t.offset, t.nbytes) for t in read_header(bundle / EXPORT_FILE)[0].values()}
    outside = [(t, e) for t, e in initializers(bundle) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor, entry in outside:
        assert (entry["location"], int(entry["offset"]), int(entry["length"])) in spans
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        assert int(np.prod(tensor.dims)) * size == int(entry["length"])


def test_one_copy_of_every_weight(tmp_path: Path) -> None:
    source = builders.write_checkpoint(tmp_path / "checkpoint", builders.V2, max_shard_bytes=20_000)
    bundle = tmp_path / "bundle"
    receipt = export_onnx(source, bundle)
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        assert (bundle / shard.name).stat().st_ino == shard.stat().st_ino
        assert receipt["weights"][shard.name] == "hardlink"
    own = sum(file.stat().st_size for file in bundle.iterdir() if file.name not in {s.name for s in shards})
    weights = sum(info.nbytes for info in Checkpoint.open(source).tensors.values())
    inline = sum(t.ByteSize() for t, e in initializers(bundle) if not e)
    assert inline < 4096 and (bundle / EXPORT_FILE).stat().st_size < weights / 2 < own + weights


def test_a_moved_bundle_runs_without_its_source(exported: Exported, tmp_path: Path) -> None:
    source, bundle = exported("memory-v1", "ort")
    expected = OrtRunner(bundle).logits(IDS)
    shutil.copytree(bundle, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved elsewhere")
    np.testing.assert_array_equal(OrtRunner(tmp_path / "moved elsewhere").logits(IDS), expected)
    assert load(tmp_path / "moved elsewhere").spec == load(source).spec


def test_companions_and_description(tmp_path: Path) -> None:
    source = builders.write_checkpoint(tmp_path / "checkpoint", builders.PLAIN)
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("mine")
    export_onnx(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "bundle" / "notes.txt").exists()
    model = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    assert props["target"] == "ort" and len(props["description"]) == 64 and props["tool"].startswith("ultramem-deploy ")


def test_export_is_deterministic_and_resumes(tmp_path: Path) -> None:
    source = builders.write_checkpoint(tmp_path / "checkpoint", builders.V2)
    first = export_onnx(source, tmp_path / "one")
    assert not first["up_to_date"]
    assert export_onnx(source, tmp_path / "one") == first | {"up_to_date": True}
    export_onnx(source, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name
    with pytest.raises(InputError, match="--overwrite"):
        export_onnx(source, tmp_path / "one", target="portable")
    assert export_onnx(source, tmp_path / "one", target="portable", overwrite=True)["target"] == "portable"


def test_refusals(tmp_path: Path) -> None:
    source = builders.write_checkpoint(tmp_path / "checkpoint", builders.PLAIN)
    with pytest.raises(InputError, match="target: expected one of ort, portable, found 'tpu'"):
        export_onnx(source, tmp_path / "out", target="tpu")
    with pytest.raises(InputError, match=r"config\.json"):
        export_onnx(tmp_path / "nothing", tmp_path / "out")
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config.replace('"tie_embeddings": false', '"tie_embeddings": true'))
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        export_onnx(source, tmp_path / "out")
    (source / "config.json").write_text(config.replace('"num_heads": 4', '"num_heads": 0'))
    with pytest.raises(ConfigError):
        export_onnx(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def damaged(exported: Exported, tmp_path: Path) -> Path:
    """A bundle of one's own, to be damaged."""
    return Path(shutil.copytree(exported("memory-v1", "ort")[1], tmp_path / "bundle"))


def test_damaged_bundles(damaged: Path) -> None:
    shard = next(f for f in damaged.glob("*.safetensors") if f.name != EXPORT_FILE)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=f"{shard.name}: .* bytes, model.onnx reads"):
        OrtRunner(damaged)
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        OrtRunner(damaged)
    shard.write_bytes(whole)
    (damaged / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        OrtRunner(damaged)
    (damaged / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="not an ONNX model"):
        OrtRunner(damaged)
    (damaged / "model.onnx").unlink()
    with pytest.raises(InputError, match="not a bundle"):
        OrtRunner(damaged)


def test_another_description(damaged: Path) -> None:
    config = (damaged / "config.json").read_text()
    (damaged / "config.json").write_text(config.replace('"theta": 10000.0', '"theta": 500.0'))
    with pytest.raises(InputError, match="does not describe"):
        OrtRunner(damaged)


def test_foreign_versions(damaged: Path) -> None:
    model = onnx.load(damaged / "model.onnx", load_external_data=False)
    opset = next(o for o in model.opset_import if o.domain == "ai.ultramem")
    opset.version = 2
    (damaged / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"ai\.ultramem version 2, this release runs version 1"):
        OrtRunner(damaged)
    opset.version = 1
    next(o for o in model.opset_import if o.domain == "").version = 9999
    (damaged / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"ONNX Runtime .* cannot load it"):
        OrtRunner(damaged)
