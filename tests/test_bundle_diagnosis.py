"""`doctor BUNDLE`: each way that loading fails has its line and its fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests import builders
from ultramem_deploy import bundle_diagnosis
from ultramem_deploy.cli import main
from ultramem_deploy.converters.bundle import make_bundle
from ultramem_deploy.converters.onnx import export_onnx


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    export_onnx(builders.write_checkpoint(tmp_path / "checkpoint", builders.V1, tokenizer=True), tmp_path / "onnx")
    make_bundle(tmp_path / "onnx", tmp_path / "bundle", with_plugins=True, copy=True)
    return tmp_path / "bundle"


def failed(bundle: Path) -> dict[str, str]:
    """Name and what was found of each required check that failed; every one has a fix."""
    checks = [check for check in bundle_diagnosis.examine(bundle) if check.required and not check.ok]
    assert all(check.fix for check in checks)
    return {check.name: check.found for check in checks}


def change(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_bundle(bundle: Path) -> None:
    assert failed(bundle) == {}
    result = CliRunner().invoke(main, ["doctor", str(bundle), "--json"])
    names = [check["name"] for check in json.loads(result.stdout)["checks"]]
    assert "python" in names and names[-1] == "loading"


def test_no_bundle(bundle: Path) -> None:
    assert "holds no manifest.json" in failed(bundle.parent / "onnx")["manifest"]
    change(bundle, lambda manifest: manifest.update(schema=9))
    assert "schema 9" in failed(bundle)["manifest"]


def test_files(bundle: Path) -> None:
    shard = bundle / "model-memory.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert "bytes, the manifest says" in failed(bundle)["files"]
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "the file changed" in failed(bundle)["files"]
    shard.unlink()
    assert "is missing" in failed(bundle)["files"]
    (bundle.parent / "elsewhere").write_bytes(whole)
    shard.symlink_to(bundle.parent / "elsewhere")
    assert "model-memory.safetensors" in failed(bundle)["links"]


def test_versions(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(bundle, lambda m: m["requires"].update(plugin="99", onnxruntime="98", operators={"domain": "x"}))
    found = failed(bundle)
    assert found.keys() >= {"plugin version", "onnxruntime", "operators"}
    monkeypatch.setattr(bundle_diagnosis, "installed", lambda name: None)
    assert failed(bundle)["onnxruntime"] == "not installed"


def test_a_plugin_for_another_platform(bundle: Path) -> None:
    change(bundle, lambda m: m["plugins"][0].update(platform="plan9-mips"))
    (check,) = (c for c in bundle_diagnosis.examine(bundle) if c.name == "plugin platform")
    assert (check.ok, check.required, check.found) == (False, False, "for plan9-mips")


def test_genai_and_loading(bundle: Path) -> None:
    for name, text, check in (("genai_config.json", "{}", "GenAI"), ("model.onnx", "x", "loading")):
        (bundle / name).write_text(text)
        change(bundle, lambda m, name=name: m["files"].pop(name))  # type: ignore[misc]
        assert check in failed(bundle)
