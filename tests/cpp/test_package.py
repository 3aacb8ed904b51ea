"""`find_package(ultramem)` from a project of a user's, in C."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.cpp.conftest import Bundled
from ultramem_deploy.runtime.generation import greedy
from ultramem_deploy.runtime.opening import open_runner

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
