"""Tables in memory that a GPU reads (plugins/gpu_tables), over CUDA's calls on the host, under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ultramem_deploy.runtime.bundle_files import table_fingerprint

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = (
    "plugins/gpu_tables/fingerprint.cpp", "plugins/gpu_tables/mapping.cpp", "plugins/gpu_tables/tables.cpp",
    "plugins/runtime/sha256.cpp", "tests/plugins/cuda_on_host/runtime.cpp", "tests/plugins/gpu_tables_test.cpp",
)  # fmt: skip
COMPILER = os.environ.get("CXX") or shutil.which("c++") or "g++"
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_tables(sanitizers: str, tmp_path: Path) -> None:
    if not (CUDA / "cuda_runtime_api.h").is_file():
        pytest.skip(f"CUDA's headers are not in {CUDA}; CUDA_HOME says where they are")
    command = [COMPILER, "-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    command += [f"-I{CHECKOUT / 'plugins'}", "-isystem", str(CUDA), *(str(CHECKOUT / name) for name in SOURCES)]
    built = subprocess.run([*command, "-o", tmp_path / "tables"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    file = tmp_path / "model.safetensors"
    file.write_bytes(np.random.default_rng(0).bytes(6_000_000))
    fingerprint = table_fingerprint(file, 4096, 6_000_000 - 4096)
    arguments = [tmp_path / "tables", file, fingerprint, tmp_path]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[:4000]


def test_a_fingerprint_sees_the_ends_the_size_and_the_place(tmp_path: Path) -> None:
    """6 MB are sampled, 1 KB is read whole."""
    data = bytearray(np.random.default_rng(1).bytes(6_000_000))
    file = tmp_path / "table"

    def found(offset: int = 0, size: int = 6_000_000) -> str:
        file.write_bytes(data)
        return table_fingerprint(file, offset, size)

    whole, small = found(), found(5, 1000)
    assert len({whole, small, found(0, 5_999_999), found(6, 1000)}) == 4
    data[-1] ^= 1
    assert found() != whole
    data[-1] ^= 1
    data[0] ^= 1
    assert found() != whole and found(5, 1000) == small
    data[504] ^= 1
    assert found(5, 1000) != small
