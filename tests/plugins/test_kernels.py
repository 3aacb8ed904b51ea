"""The kernels under AddressSanitizer and UBSan, driven from C++ as a host of its own would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`kernels_under_sanitizers`, built apart from the ordinary build."""
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    build = tmp_path_factory.mktemp("sanitizers")
    options = ["-DULTRAMEM_CHECKS=ON", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    for command in ([cmake, "-S", CHECKOUT, "-B", build, *options], [cmake, "--build", build, "-j2"]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return build / "tests" / "plugins" / "kernels_under_sanitizers"


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_kernels_are_clean(program: Path, isa: str) -> None:
    environment = {**os.environ, "ULTRAMEM_CPU": isa}  # where the machine lacks it, its best one runs again
    result = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
