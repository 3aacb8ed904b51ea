"""`doctor`: each check alone, broken environments, and the command's exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from ultramem_deploy import diagnosis
from ultramem_deploy.cli import main
from ultramem_deploy.diagnosis import Check, doctor
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.plugins import ORT_VARIABLE, ort_library


def by_name() -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in doctor()}


def has_library() -> bool:
    try:
        return ort_library().is_file()
    except InputError:
        return False


needs_library = pytest.mark.skipif(not has_library(), reason="the native library is not built")


def test_every_check_is_complete() -> None:
    checks = doctor()
    assert {
        "python",
        "torch",
        "onnx",
        "safetensors",
        "onnxruntime",
        "execution providers",
        "memory",
    } <= by_name().keys()
    for check in checks:
        assert check.keys() == {"name", "ok", "found", "expected", "fix", "required"}
        assert check["ok"] or check["fix"], check
        assert check["found"] and check["expected"]


@needs_library
def test_this_environment_is_sound() -> None:
    failed = [check for check in doctor() if check["required"] and not check["ok"]]
    assert failed == []
    assert "max abs error 0.0e+00" in by_name()["native operators"]["found"]


@needs_library
def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "library_info", lambda _: {"version": "9.9", "isa": "plain"})
    check = by_name()["native library version"]
    assert (check["ok"], check["found"]) == (False, "9.9")
    assert check["fix"].startswith("pip install")


def test_a_missing_library_fails_its_checks_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ORT_VARIABLE, str(tmp_path / "absent.so"))
    checks = by_name()
    for name in ("native library", "native operators"):
        assert not checks[name]["ok"] and ORT_VARIABLE in checks[name]["fix"]
    assert checks["torch"]["ok"] and checks["execution providers"]["ok"]
    assert checks["C++ compiler"]["required"]


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "wrong.so"
    file.write_bytes(b"not a library")
    monkeypatch.setenv(ORT_VARIABLE, str(file))
    checks = by_name()
    assert not checks["native library"]["ok"] and not checks["native operators"]["ok"]


def test_a_missing_and_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnx":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1"

    monkeypatch.setattr(metadata, "version", version)
    found = {check.name: check for check in diagnosis.check_dependencies()}
    assert (found["onnx"].ok, found["onnx"].found) == (False, "not installed")
    assert (found["torch"].ok, found["torch"].found) == (False, "0.0.1")
    assert found["torch"].fix == f"pip install 'torch{found['torch'].expected}'"


def test_either_onnxruntime_distribution_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(metadata, "version", version)
    (check,) = diagnosis.check_onnxruntime()
    assert (check.name, check.ok) == ("onnxruntime-gpu", True)


def test_extras_are_optional_and_developers_tools_are_left_out() -> None:
    checks = diagnosis.check_extras()
    assert {"extra hf", "extra gpu", "extra tensorrt"} <= {check.name for check in checks}
    assert "extra dev" not in {check.name for check in checks}
    assert not any(check.required for check in checks)
    assert all(check.fix.startswith("pip install") for check in checks)


def test_metadata_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from email.message import Message

    own = Message()
    for key, value in [("Version", "1.2"), ("Requires-Python", ">=3.11"), ("Provides-Extra", "hf"),
                       ("Requires-Dist", "numpy>=2"), ("Requires-Dist", 'gguf>=0.1; extra == "hf"'),
                       ("Requires-Dist", 'colorama; sys_platform == "win32"')]:  # fmt: skip
        own[key] = value
    monkeypatch.setattr(metadata, "metadata", lambda _: own)
    found = diagnosis.package()
    assert (found.version, found.installed) == ("1.2", True)
    assert found.requirements == (Requirement("numpy>=2"),)
    assert [r.name for r in found.extras["hf"]] == ["gguf"]


def test_huge_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = tmp_path / "enabled"
    monkeypatch.setattr(diagnosis, "HUGE_PAGES", state)
    assert diagnosis.check_huge_pages()[0].ok
    state.write_text("always madvise [never]\n")
    (check,) = diagnosis.check_huge_pages()
    assert (check.ok, check.found, check.required) == (False, "never", False)


def _only(monkeypatch: pytest.MonkeyPatch, *checks: Callable[[], list[Check]]) -> None:
    monkeypatch.setattr(diagnosis, "CHECKS", checks)


def test_a_check_that_breaks_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_broken_thing() -> list[Check]:
        raise ZeroDivisionError("oops")

    _only(monkeypatch, check_broken_thing, diagnosis.check_python)
    broken, python = doctor()
    assert (broken["name"], broken["ok"], broken["found"]) == ("broken thing", False, "ZeroDivisionError: oops")
    assert python["ok"]


@pytest.mark.parametrize("required, code", [(True, 1), (False, 0)])
def test_exit_code_and_fix_on_the_terminal(monkeypatch: pytest.MonkeyPatch, required: bool, code: int) -> None:
    _only(monkeypatch, lambda: [Check("thing", False, "bad", "good", "do this", required)])
    shown = CliRunner().invoke(main, ["doctor"])
    assert shown.exit_code == code
    assert "fix: do this" in shown.stdout
    assert shown.stderr == ("error: doctor: 1 required check failed: thing\n" if required else "")
    printed = CliRunner().invoke(main, ["doctor", "--json"])
    assert json.loads(printed.stdout)["ok"] is not required
    assert printed.exit_code == code
