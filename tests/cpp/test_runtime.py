"""The C++ tests under sanitizers: the library's parts, opening and sessions over ONNX Runtime, threads over a stub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpp.conftest import Bundled

CHECKOUT = Path(__file__).resolve().parents[2]
FUZZ_EXECUTIONS = 100_000


def built(sanitizers: str) -> Path:
    """The folder of test programs, compiled with these sanitizers; kept between runs."""
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    build = CHECKOUT / "build" / f"cpp-{sanitizers.partition(',')[0]}"
    options = [
        "-DULTRAMEM_CHECKS=ON", "-DULTRAMEM_RUNTIME=ON", f"-DULTRAMEM_SANITIZERS={sanitizers}",
        "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", f"-DPython3_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    targets = ["runtime_tests", "threads_test", "fuzz_readers", "stub_ort"]
    compile_them = [cmake, "--build", build, "-j2", "--target", *targets]
    for command in ([cmake, "-S", CHECKOUT, "-B", build, "-G", "Ninja", *options], compile_them):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return build / "tests" / "cpp"


@pytest.fixture(scope="session")
def programs(cpp: Path) -> Path:
    return built("address,undefined")


def run(program: Path, cpp: Path, *arguments: object, leaks: bool = True) -> None:
    libraries = {
        "ULTRAMEM_ONNXRUNTIME": cpp / "lib" / "libonnxruntime.so.1",
        "ULTRAMEM_TOKENIZER": cpp / "lib" / "libortextensions.so",
        "STUB_ORT": program.with_name("libstub_ort.so"),
    }
    environment = {**os.environ, **{name: str(path) for name, path in libraries.items()}}
    environment["ASAN_OPTIONS"] = f"detect_leaks={int(leaks)}"
    command = [program, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def test_library(programs: Path, cpp: Path, bundled: Bundled, tmp_path: Path) -> None:
    # LeakSanitizer sometimes crashes beside ONNX Runtime's threads; leaks are looked for over the stub.
    run(programs / "runtime_tests", cpp, bundled("v2"), bundled("v2", "portable"), tmp_path, leaks=False)


def test_readers_take_any_bytes(programs: Path, cpp: Path, bundled: Bundled, tmp_path: Path) -> None:
    """Random changes of real files; with clang `fuzz_readers` is a libFuzzer program instead."""
    bundle, seeds = bundled("v2"), []
    for kind, name in ((b"\0", "manifest.json"), (b"\1", "model-memory.safetensors")):
        seeds.append(tmp_path / name)
        seeds[-1].write_bytes(kind + (bundle / name).read_bytes()[:8192])
    run(programs / "fuzz_readers", cpp, FUZZ_EXECUTIONS, *seeds)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_threads(cpp: Path, bundled: Bundled, tmp_path: Path, sanitizers: str) -> None:
    """ThreadSanitizer and LeakSanitizer over a stub: ONNX Runtime's own wheel is not instrumented."""
    bundle = bundled("plain")
    run(built(sanitizers) / "threads_test", cpp, bundle, bundle, tmp_path)
