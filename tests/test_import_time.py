"""Verbs that read headers alone import nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ultramem_deploy
from tests import builders

ROOT = Path(ultramem_deploy.__file__).parents[1]
SCRIPT = """
import sys
from ultramem_deploy.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *(name for name in ("torch", "transformers", "onnx", "onnxruntime", "rich") if name in sys.modules))
"""


def imported(*arguments: object) -> set[str]:
    """Which heavy packages a command imports."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return set(result.stdout.splitlines()[-1].removeprefix("imported:").split())


VERBS = ("inspect", "plan", "convert", "upcycle", "fold", "export", "build", "verify", "generate", "run", "recipes")


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    assert imported(*verb, "--help") == set()


def test_inspect_imports_nothing_heavy(tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1)
    assert imported("inspect", model, "--json") == set()
    assert imported("inspect", model) <= {"rich"}


def test_recipes_are_read_without_anything_heavy() -> None:
    for arguments in (["ls"], ["show", "upcycle-identity", "--json"], ["validate", "upcycle-neurons"]):
        assert imported("recipes", *arguments) == set()


def test_the_package_imports_nothing_heavy() -> None:
    script = "import sys, ultramem_deploy; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
