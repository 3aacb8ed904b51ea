"""The C++ tests under sanitizers: the library's parts, opening and sessions over ONNX Runtime, threads over a stub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpp.conftest import Bundled

CHECKOUT = Path(__file__).resolve().parents[2]
FUZZ_EXECUTIONS = int(os.environ.get("ULTRAMEM_FUZZ_EXECUTIONS", "100000"))
SMALL_MODEL = {"decoder": {"vocab_size": 61, "num_layers": 1, "num_kv_heads": 2, "head_dim": 16}}
ENGINE = {
    "backend": "tensorrt", "version": "10.14.1.48", "version_compatible": False, "embeds_plugin": False,
    "weight_streaming": True, "capabilities": ["9.0"], "least_capability": None, "shortest": 1, "longest": 8,
    "context": 32, "cache_item_bytes": 2, "caches": [{"input": "past", "output": "present", "heads": 2, "width": 16}],
    "bindings": {"tables.t.values": "tables.t.values"},
}  # fmt: skip
CMAKE = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
CLANG = shutil.which("clang++")


def built(sanitizers: str) -> Path:
    """The folder of test programs, compiled with these sanitizers; kept between runs."""
    folder = configured(sanitizers.partition(",")[0], sanitizers)
    for target in ("runtime_tests", "threads_test", "fuzz_readers", "stub_ort"):
        compiled(folder, target)
    return folder


def configured(name: str, sanitizers: str, *more: str) -> Path:
    build = CHECKOUT / "build" / f"cpp-{name}"
    options = [
        "-DULTRAMEM_CHECKS=ON", "-DULTRAMEM_RUNTIME=ON", f"-DULTRAMEM_SANITIZERS={sanitizers}",
        "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", f"-DPython3_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    run_cmake([CMAKE, "-S", CHECKOUT, "-B", build, "-G", "Ninja", *options, *more])
    return build / "tests" / "cpp"


def compiled(folder: Path, target: str) -> Path:
    """A program of the folder that `built` gives."""
    run_cmake([CMAKE, "--build", folder.parents[1], "-j2", "--target", target])
    return folder / target


def run_cmake(command: list[str | Path]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="session")
def programs(cpp: Path) -> Path:
    return built("address,undefined")


def run(program: Path, cpp: Path, *arguments: object, leaks: bool = True, timeout: float = 300) -> None:
    libraries = {
        "ULTRAMEM_ONNXRUNTIME": cpp / "lib" / "libonnxruntime.so.1",
        "ULTRAMEM_TOKENIZER": cpp / "lib" / "libortextensions.so",
        "STUB_ORT": program.with_name("libstub_ort.so"),
    }
    environment = {**os.environ, **{name: str(path) for name, path in libraries.items()}}
    environment["ASAN_OPTIONS"] = f"detect_leaks={int(leaks)}"
    command = [program, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_library(programs: Path, cpp: Path, bundled: Bundled, tmp_path: Path) -> None:
    # LeakSanitizer sometimes crashes beside ONNX Runtime's threads; leaks are looked for over the stub.
    run(programs / "runtime_tests", cpp, bundled("v2"), bundled("v2", "portable"), tmp_path, leaks=False)


@pytest.fixture
def seeds(bundled: Bundled, tmp_path: Path) -> Path:
    """A folder of whole manifests and a table's first bytes, each behind the byte that says which reader takes it."""
    bundle, folder = bundled("v2"), tmp_path / "seeds"
    folder.mkdir()
    for kind, name in ((b"\0", "manifest.json"), (b"\1", "model-memory.safetensors")):
        (folder / name).write_bytes(kind + (bundle / name).read_bytes()[:8192])
    document = json.loads((bundle / "manifest.json").read_text()) | {"runtime": "tensorrt", "model": SMALL_MODEL}
    document |= {"engine": ENGINE}
    (folder / "engine.json").write_bytes(b"\0" + json.dumps(document).encode())
    return folder


def test_readers_take_any_bytes(programs: Path, cpp: Path, seeds: Path) -> None:
    """Random changes of real files."""
    run(programs / "fuzz_readers", cpp, min(FUZZ_EXECUTIONS, 100_000), *seeds.iterdir())


@pytest.mark.skipif(CLANG is None, reason="libFuzzer comes with clang++, which is not on the path")
def test_readers_under_libfuzzer(cpp: Path, seeds: Path) -> None:
    """Changes guided by coverage; `make fuzz` asks for ten million."""
    folder = configured("fuzzer", "address,undefined,fuzzer-no-link", f"-DCMAKE_CXX_COMPILER={CLANG}")
    options = [f"-runs={FUZZ_EXECUTIONS}", "-max_len=8192", f"-artifact_prefix={folder}/"]
    run(compiled(folder, "fuzz_readers"), cpp, *options, seeds, timeout=7200)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_threads(cpp: Path, bundled: Bundled, tmp_path: Path, sanitizers: str) -> None:
    """ThreadSanitizer and LeakSanitizer over a stub: ONNX Runtime's own wheel is not instrumented."""
    bundle = bundled("plain")
    run(built(sanitizers) / "threads_test", cpp, bundle, bundle, tmp_path)
