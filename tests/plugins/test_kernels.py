"""The kernels under AddressSanitizer, UBSan and ThreadSanitizer, driven from C++ as a host of its own would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


ISAS = ("plain", "avx2", "avx512", "avx512_bf16")


def built(build: Path, sanitizers: str) -> Path:
    """The folder of both programs, built apart from the ordinary build."""
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    options = ["-DULTRAMEM_CHECKS=ON", f"-DULTRAMEM_SANITIZERS={sanitizers}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    for command in ([cmake, "-S", CHECKOUT, "-B", build, *options], [cmake, "--build", build, "-j2"]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return build / "tests" / "plugins"


def run(program: Path, isa: str) -> None:
    environment = {**os.environ, "ULTRAMEM_CPU": isa}  # where the machine lacks it, its best one runs again
    result = subprocess.run([program], env=environment, cwd=program.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("address"), "address,undefined")


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("thread"), "thread")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("program", ["kernels_under_sanitizers", "kernels_under_threads"])
def test_kernels_are_clean(guarded: Path, program: str, isa: str) -> None:
    run(guarded / program, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_threads_do_not_race(watched: Path, isa: str) -> None:
    """Several hosts, each with its own threads, on one table."""
    run(watched / "kernels_under_threads", isa)
