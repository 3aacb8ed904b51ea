"""What a bundle holds, that it moves, what `--check` finds, and what bundling refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests import builders
from ultramem_deploy.cli import main
from ultramem_deploy.converters.bundle import check_bundle, make_bundle
from ultramem_deploy.converters.bundle.genai import tokenizer_config
from ultramem_deploy.converters.bundle.manifest import MIN_ONNXRUNTIME, MIN_PLUGIN
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.diagnosis import package
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.runtime.manifest import check_version, read_manifest
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.runtime.plugins import ort_library

IDS = np.random.default_rng(3).integers(0, 61, (1, 6))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a model with two tables of one name, a memory layer that wraps round, and a tokenizer."""
    folder = tmp_path_factory.mktemp("exported")
    source = builders.write_checkpoint(folder / "checkpoint", builders.V2, tokenizer=True)
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    export_onnx(source, folder / "onnx")
    return folder / "onnx"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A bundle that shares no file with another, to be damaged."""
    make_bundle(exported, tmp_path / "bundle", with_plugins=True, copy=True)
    return tmp_path / "bundle"


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "manifest.json").read_text()))


def rewrite(bundle: Path, **changes: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps(manifest(bundle) | changes))


def test_golden_layout(bundle: Path) -> None:
    assert sorted(file.name for file in bundle.iterdir()) == [
        "config.json", "genai_config.json", "libultramem_ort.so", "manifest.json", "model-decoder.safetensors",
        "model-export.safetensors", "model-memory.safetensors", "model.onnx", "model.safetensors.index.json",
        "provenance.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    found = manifest(bundle)
    assert {key: sorted(value) if isinstance(value, dict) else type(value) for key, value in found.items()} == {
        "format": str, "schema": int, "tool": ["name", "version"], "runtime": str,
        "requires": ["onnxruntime", "operators", "plugin"],
        "graph": ["cache", "file", "positions", "prefill_chunk", "target", "uses_operators"],
        "model": sorted(builders.V2.to_config()), "tables": list, "tokenizer": ["config", "file"], "plugins": list,
        "files": sorted({f.name for f in bundle.iterdir()} - {"manifest.json", "provenance.json",
                                                             "model.safetensors.index.json"}),
    }  # fmt: skip
    assert (found["format"], found["schema"]) == ("ultramem-bundle", 1)
    assert found["graph"] | {"positions": 0} == {
        "file": "model.onnx", "target": "ort", "cache": "packed", "positions": 0, "prefill_chunk": 512,
        "uses_operators": True,
    }  # fmt: skip
    assert [sorted(table) for table in found["tables"]] == 2 * [
        ["bytes", "dtype", "file", "name", "offset", "rows_per_token", "sha256", "shape"]
    ]


def test_tables_are_where_the_manifest_says(bundle: Path, exported: Path) -> None:
    arrays = builders.random_tensors(builders.V2)
    tables = {table["name"]: table for table in manifest(bundle)["tables"]}
    assert set(tables) == {"tables.t.values", "tables.t.pre_values"}
    for name, table in tables.items():
        data = (bundle / table["file"]).read_bytes()[table["offset"] :][: table["bytes"]]
        np.testing.assert_array_equal(np.frombuffer(data, table["dtype"]).reshape(table["shape"]), arrays[name])
        assert table["sha256"] == hashlib.sha256(arrays[name].tobytes()).hexdigest()
        assert table["rows_per_token"] == sum(layer.heads * layer.top_m for layer in builders.V2.memory)


def test_every_hash_and_no_path_outside(bundle: Path) -> None:
    for name, entry in manifest(bundle)["files"].items():
        data = (bundle / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"]), name
    for file in ("manifest.json", "genai_config.json"):
        assert str(bundle.parent) not in (bundle / file).read_text()


def test_genai_config(bundle: Path) -> None:
    config = json.loads((bundle / "genai_config.json").read_text())["model"]
    assert config["type"] == "decoder" and config["vocab_size"] == 61 and config["context_length"] == 512
    assert config["decoder"]["session_options"]["custom_ops_library"] == "libultramem_ort.so"
    assert json.loads((bundle / "config.json").read_text())["model_type"] == "ultramem"
    assert json.loads((bundle / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer_config({"tokenizer_class": "GPT2Tokenizer"}) == {"tokenizer_class": "GPT2Tokenizer"}


def test_weights_are_linked_and_the_stage_resumes(exported: Path, tmp_path: Path) -> None:
    receipt = make_bundle(exported, tmp_path / "bundle")
    assert set(receipt["weights"].values()) == {"hardlink"} and receipt["plugins"] == []
    for name in receipt["weights"]:
        assert (tmp_path / "bundle" / name).stat().st_ino == (exported / name).stat().st_ino
    assert make_bundle(exported, tmp_path / "bundle") == receipt | {"up_to_date": True}
    assert not (tmp_path / "bundle" / "libultramem_ort.so").exists()
    with pytest.raises(InputError, match="--overwrite"):
        make_bundle(exported, tmp_path / "bundle", with_plugins=True)


def test_a_moved_bundle_runs_and_checks(bundle: Path, exported: Path, tmp_path: Path) -> None:
    moved = bundle.rename(tmp_path / "moved elsewhere")
    np.testing.assert_array_equal(OrtRunner(moved).logits(IDS), OrtRunner(exported).logits(IDS))
    assert check_bundle(moved)["tables"] == 2


def test_check_finds_a_changed_byte_anywhere(bundle: Path, tmp_path: Path) -> None:
    for name in manifest(bundle)["files"]:
        # Renamed, never written to: a library may be mapped into this process.
        file, kept = bundle / name, tmp_path / "kept"
        file.rename(kept)
        whole = bytearray(kept.read_bytes())
        whole[-1] ^= 1
        file.write_bytes(whole)
        with pytest.raises(CheckFailed, match=name.replace(".", r"\.")):
            check_bundle(bundle)
        kept.replace(file)
    assert check_bundle(bundle)["ok"]


def test_check_finds_what_is_missing_cut_or_moved(bundle: Path) -> None:
    shard = bundle / "model-memory.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(CheckFailed, match=f"{len(whole) - 100} bytes, the manifest says {len(whole)}"):
        check_bundle(bundle)
    shard.unlink()
    with pytest.raises(CheckFailed, match="model-memory.safetensors is missing"):
        check_bundle(bundle)
    shard.write_bytes(whole)
    tables = manifest(bundle)["tables"]
    rewrite(bundle, tables=[tables[0] | {"offset": tables[0]["offset"] + 4}, tables[1]])
    with pytest.raises(CheckFailed, match=r"tables.t.pre_values has offset"):
        check_bundle(bundle)


def test_check_enforces_versions(bundle: Path) -> None:
    found = manifest(bundle)
    for changes, message in (
        ({"schema": 2}, "schema 2, this release reads 1 to 1"),
        ({"schema": "1"}, "schema '1'"),
        ({"format": "zip"}, "format 'zip'"),
        ({"runtime": "tpu"}, "a bundle for runtime 'tpu', expected onnxruntime or tensorrt; bundle again"),
        ({"tables": {}}, "tables: input should be a valid array, found {}: the file is damaged"),
        ({"files": {"../x": {"size": 0, "sha256": ""}}}, r"leaves the bundle"),
    ):
        rewrite(bundle, **changes)
        with pytest.raises(InputError, match=message):
            check_bundle(bundle)
        rewrite(bundle, **found)
    rewrite(bundle, requires=found["requires"] | {"plugin": "99.0"})
    with pytest.raises(CheckFailed, match=r"libultramem_ort.so: version .*, the bundle requires 99.0 or newer"):
        check_bundle(bundle)
    rewrite(bundle, requires=found["requires"] | {"operators": {"domain": "ai.ultramem", "version": 2}})
    with pytest.raises(CheckFailed, match="operators"):
        check_bundle(bundle)
    rewrite(bundle, requires=found["requires"] | {"onnxruntime": "99.0"})
    with pytest.raises(CheckFailed, match="onnxruntime: version .*, the bundle requires 99.0 or newer"):
        check_bundle(bundle)


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, *path, key)


def test_a_damaged_manifest_is_refused_wherever_it_is_damaged(bundle: Path) -> None:
    """A wrong type at any place that is read is told by its name; every other error would be a traceback."""
    whole, refused = manifest(bundle), 0
    for *path, last in places({key: value for key, value in whole.items() if key != "model"}):
        for damage in (None, -1, [0], {"x": 0}):
            found = deepcopy(whole)
            part: Any = found
            for key in path:
                part = part[key]
            part[last] = damage
            (bundle / "manifest.json").write_text(json.dumps(found))
            try:
                check_bundle(bundle)
            except (InputError, CheckFailed):
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(("name", "kernels"), [("onnxruntime", True), ("onnxruntime", False), ("plugin", True)])
def test_opening_in_python_enforces_versions(bundle: Path, name: str, kernels: bool) -> None:
    requires = manifest(bundle)["requires"]
    rewrite(bundle, requires=requires | {name: "99.0"})
    with pytest.raises(InputError, match="version .*, the bundle requires 99.0 or newer"):
        OrtRunner(bundle, kernels=kernels)


def test_function_bodies_need_no_plugin(bundle: Path) -> None:
    rewrite(bundle, requires=manifest(bundle)["requires"] | {"plugin": "99.0"})
    assert OrtRunner(bundle, kernels=False).logits(IDS).shape == (1, 6, 61)


def test_minimums_are_those_of_the_package() -> None:
    """Where the extra asks for a newer ONNX Runtime, so must a bundle."""
    (requirement,) = (r for r in package().extras["cpu"] if r.name == "onnxruntime")
    assert str(requirement.specifier) == f">={MIN_ONNXRUNTIME}"
    check_version("this release", package().version, MIN_PLUGIN, "none")


def test_refusals(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a checkpoint, not an export: .*ultramem-deploy export"):
        make_bundle(exported.parent / "checkpoint", tmp_path / "out")
    with pytest.raises(InputError, match="not a bundle"):
        make_bundle(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"runtime: expected one of onnxruntime, tensorrt, found 'tpu'"):
        make_bundle(exported, tmp_path / "out", runtime="tpu")
    with pytest.raises(InputError, match=r"no TensorRT engine: first run `ultramem-deploy build"):
        make_bundle(exported, tmp_path / "out", runtime="tensorrt")
    with pytest.raises(InputError, match=r"holds no manifest.json"):
        read_manifest(exported)
    assert not (tmp_path / "out").exists()


def test_command_line(exported: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(main, ["bundle", str(exported), str(tmp_path / "b"), "--with-plugins", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["plugins"][0]["file"] == "libultramem_ort.so"
    assert "2 tables" in run(main, ["bundle", "--check", str(tmp_path / "b")]).stdout
    (tmp_path / "b" / "genai_config.json").write_text("{}")
    result = run(main, ["bundle", "--check", str(tmp_path / "b")])
    assert result.exit_code == 1 and "genai_config.json" in result.stderr
    assert run(main, ["bundle", str(exported)]).exit_code == 2
    shutil.rmtree(tmp_path / "b")
    assert run(main, ["bundle", str(exported), str(tmp_path / "b"), "--check", str(exported)]).exit_code == 2


def test_a_disk_that_is_full_with_the_library_says_what_to_do(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ort_library().stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(InputError, match=r"libultramem_ort\.so need .*: 1 short; free some space or choose another"):
        make_bundle(exported, tmp_path / "bundle", with_plugins=True)
