"""What `inspect` says of every kind of model, against numbers counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from tests import builders
from tests.conftest import Written
from tests.converters.importers.sources import family_config, llama_shapes, random_tensors, write_source
from ultramem_deploy import InputError, inspect
from ultramem_deploy.cli import main
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.pipeline import diff, export, fold, patch

KEYS = {"family", "parameters_total", "parameters_table", "parameters_active", "dtype", "bytes", "files",
        "memory_layers", "warnings", "lineage", "stage"}  # fmt: skip


def test_canonical_checkpoint(written: Written) -> None:
    path = written(builders.V1)
    files = sorted(path.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    found = inspect(path)
    assert found.keys() >= KEYS
    assert found["family"] == "ultramem"
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    buffers = sum(tensor.size for name, tensor in tensors.items() if name.endswith((".shuffle", ".u", ".v")))
    assert found["parameters_total"] == sum(tensor.size for tensor in tensors.values()) - buffers
    assert found["parameters_table"] == 36 * 16
    assert (found["dtype"], found["table_dtype"], found["stage"]) == ("float32", "float32", "random")
    assert [entry["name"] for entry in found["files"]] == [file.name for file in files]


def test_memory_layer(written: Written) -> None:
    assert inspect(written(builders.V1))["memory_layers"] == [
        {
            "read_block": 0,
            "write_block": 1,
            "kind": "ultramem_v1",
            "physical_slots": 36,
            "virtual_slots": 144,
            "value_width": 16,
            "top_m": 4,
            "heads": 2,
            "rank": 2,
            "cores": 2,
            "table": "t",
            "folded": False,
            "biases": [],
            "token_gate": False,
            "rank_one_keys": False,
            "empty_slot": None,
        }
    ]


def test_biases_and_an_empty_slot(written: Written) -> None:
    layer = replace(builders.PLUS.memory[0], query_bias=True, output_bias=True, token_gate=True, empty_slot=7)
    (found,) = inspect(written(replace(builders.PLUS, memory=(layer,))))["memory_layers"]
    assert (found["biases"], found["token_gate"], found["empty_slot"]) == (["query", "output"], True, 7)


def test_a_window_of_a_shared_table_counts_its_own_slots(written: Written) -> None:
    layers = inspect(written(builders.V2))["memory_layers"]
    assert [layer["physical_slots"] for layer in layers] == [36, 36]


def test_additive_scores_have_rank_one(written: Written) -> None:
    (layer,) = inspect(written(builders.PLUS))["memory_layers"]
    assert (layer["rank"], layer["cores"]) == (1, 1)


def test_folded_layer(written: Written) -> None:
    (layer,) = inspect(written(builders.EXPANDED))["memory_layers"]
    assert layer["folded"] and layer["physical_slots"] == layer["virtual_slots"] == 144


def test_dtype_of_half_precision(written: Written) -> None:
    found = inspect(written(builders.V1, dtype="bfloat16"))
    assert (found["dtype"], found["table_dtype"]) == ("bfloat16", "bfloat16")


def test_hugging_face_source(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes())
    found = inspect(write_source(tmp_path / "source", family_config("llama"), tensors, shards=2))
    assert (found["family"], found["stage"], found["lineage"]) == ("llama", None, [])
    assert found["parameters_total"] == sum(tensor.size for tensor in tensors.values())
    assert found["parameters_active"] == found["parameters_total"] - 64 * 32
    assert (found["memory_layers"], found["table_dtype"], len(found["files"])) == ([], None, 2)
    assert any("tokenizer.json" in warning for warning in found["warnings"])


def test_mixed_dense_dtypes_are_a_warning_and_the_most_common_wins(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes(), "bfloat16")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype("float32")
    found = inspect(write_source(tmp_path / "source", family_config("llama"), tensors))
    assert found["dtype"] == "bfloat16"
    assert any("mix bfloat16, float32" in warning for warning in found["warnings"])


@pytest.mark.parametrize("model", [builders.PLAIN, builders.EXPANDED], ids=["dense", "folded"])
def test_bundle(written: Written, tmp_path: Path, model: builders.ModelSpec) -> None:
    bundle = tmp_path / "bundle"
    export_onnx(written(model), bundle)
    found = inspect(bundle)
    assert (found["family"], found["stage"]) == ("ultramem", "export")
    assert [entry["stage"] for entry in found["lineage"]] == ["random", "export"]
    assert [port["name"] for port in found["onnx"]["inputs"]][:1] == ["input_ids"]
    assert "logits" in [port["name"] for port in found["onnx"]["outputs"]]
    assert ("ai.ultramem::SparseLookup" in found["onnx"]["operators"]) == bool(model.memory)


def test_damaged_graph(written: Written) -> None:
    path = written(builders.V1)
    (path / "model.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match=r"model\.onnx: not an ONNX model"):
        inspect(path)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        inspect(tmp_path / "absent")


def test_gguf_is_described_as_it_is_stored(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.converters.importers.test_gguf import write_gguf

    file = write_gguf(tmp_path / "m.gguf")
    found = inspect(file)
    assert (found["family"], found["dtype"]) == ("gguf", "float32")
    assert 0 < found["bytes"] < file.stat().st_size
    assert found["bytes"] < 4 * found["parameters_total"], "quantised tensors take fewer bytes than float32"
    assert found["files"] == [{"name": "m.gguf", "bytes": file.stat().st_size}]
    assert any("convert decodes to float32" in warning for warning in found["warnings"])


def test_every_stage_shows_its_lineage(written: Written, tmp_path: Path) -> None:
    """Folded, exported, compared, patched and written back: the chain of stages, and what each proved."""
    source = written(builders.V1)
    fold(source, tmp_path / "folded", mode="rank1")
    export(tmp_path / "folded", tmp_path / "bundle")
    diff(source, tmp_path / "folded", out=tmp_path / "delta")
    patch(source, tmp_path / "patched", delta=tmp_path / "delta")
    stages = {
        name: [e["stage"] for e in inspect(tmp_path / name)["lineage"]] for name in ("bundle", "delta", "patched")
    }
    assert stages == {
        "bundle": ["random", "fold", "export"],
        "delta": ["random", "fold", "diff"],
        "patched": ["random", "fold", "diff", "patch"],
    }
    folded = inspect(tmp_path / "patched")["lineage"][1]
    assert folded["source"] == ["model"] and folded["receipt"]["min_index_agreement"] == 1.0
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "patched")]).output
    assert "fold of model: " in said and "min_index_agreement 1" in said and "rank-1 keys" in said


def test_a_delta(written: Written, tmp_path: Path) -> None:
    changed = {name: t for name, t in builders.random_tensors(builders.V1).items() if name == "tables.t.values"}
    changed["tables.t.values"][5] += 1
    diff(written(builders.V1), written(builders.V1, "two", changes=changed), out=tmp_path / "delta")
    found = inspect(tmp_path / "delta")
    assert (found["family"], found["stage"]) == ("delta", "diff")
    assert found["changes"] == {"tables.t.values": {"kind": "rows", "rows": 1}}
    assert "1 with changed rows" in CliRunner().invoke(main, ["inspect", str(tmp_path / "delta")]).output
