"""What is generated from the operator definitions is up to date, and the C++ is formatted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ultramem_deploy.ops import render

CHECKOUT = Path(__file__).resolve().parents[2]


def test_header_and_page_are_fresh() -> None:
    assert render.stale(CHECKOUT) == [], f"run `{render.COMMAND}`"


def test_check_fails_where_a_file_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "ROOT", tmp_path)
    for folder in ("plugins", "docs"):
        (tmp_path / folder).mkdir()
    runner = CliRunner()
    assert runner.invoke(render.main, ["--check"]).exit_code == 1
    assert runner.invoke(render.main, []).exit_code == 0
    assert runner.invoke(render.main, ["--check"]).exit_code == 0
    (tmp_path / "docs" / "operators.md").write_text("old")
    result = runner.invoke(render.main, ["--check"])
    assert result.exit_code == 1 and "operators.md is stale" in result.output


def test_cpp_is_formatted() -> None:
    beside = Path(sys.executable).with_name("clang-format")
    program = shutil.which("clang-format") or (str(beside) if beside.is_file() else None)
    if program is None:
        pytest.skip("clang-format is not installed")
    sources = [p for top in ("plugins", "tests") for p in (CHECKOUT / top).rglob("*") if p.suffix in (".h", ".cpp")]
    result = subprocess.run([program, "--dry-run", "-Werror", *sources], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
