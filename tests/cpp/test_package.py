"""`find_package(ultramem)` from a project of a user's, in C, and the commands that docs/cpp.md begins with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cpp.conftest import Bundled
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).with_name("consumer")


def test_a_project_finds_the_package(cpp: Path, bundled: Bundled, tmp_path: Path) -> None:
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    prefix = f"-DCMAKE_PREFIX_PATH={cpp}"
    for command in ([cmake, "-S", CONSUMER, "-B", tmp_path, prefix], [cmake, "--build", tmp_path]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    bundle = bundled("v1")
    result = subprocess.run([tmp_path / "consumer", bundle], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert [int(part) for part in result.stdout.split()] == list(greedy(open_runner(bundle, "ort"), [7, 31, 2], 2))
    result = subprocess.run([tmp_path / "consumer", tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "error 2" in result.stderr and "ultramem-deploy bundle" in result.stderr


def test_the_commands_of_the_page(cpp: Path, bundled: Bundled, tmp_path: Path) -> None:
    """As a newcomer types them, after the two that make the demo and the library."""
    page = (ROOT / "docs/cpp.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(.*?)^```", page, re.M | re.S)
    assert block is not None
    # The tiny model knows lower-case letters alone.
    made, library, activated, *commands = block[1].replace("The with statement", "the memory").splitlines()
    assert (made, library, activated) == ("make demo", "make cpp", ". .venv/bin/activate")
    for there, link in ((bundled("v1").with_name("onnx"), "demo/out/onnx"), (cpp, "build/cpp")):
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(there)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = "\n".join(["set -e", *commands])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]).keys() == {
        "tokens_per_second",
        "time_to_first_token_ms",
        "rss_mb",
    }
