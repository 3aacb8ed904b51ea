"""Finding the library, what it says of itself, and how it refuses a runtime or a setting that it cannot serve."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime import plugins

EXPORTED = {
    "RegisterCustomOps",
    "ultramem_ask_ahead",
    "ultramem_attention_run",
    "ultramem_linear_run",
    "ultramem_cpu_error",
    "ultramem_cpu_isa",
    "ultramem_openmp_for",
    "ultramem_round_rows",
    "ultramem_place",
    "ultramem_read_ahead",
    "ultramem_release",
    "ultramem_sparse_gate_run",
    "ultramem_sparse_lookup_run",
    "ultramem_tables_named",
    "ultramem_tucker_topk_run",
    "ultramem_version",
}
CALLBACK = ctypes.CFUNCTYPE
API_17 = 17


def test_the_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "mine.so"
    named.touch()
    monkeypatch.setenv(plugins.ORT_VARIABLE, str(named))
    assert plugins.ort_library() == named
    named.unlink()
    with pytest.raises(InputError, match=r"ULTRAMEM_ORT_LIBRARY names .*mine\.so, which is not a file"):
        plugins.ort_library()


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugins.ORT_VARIABLE, raising=False)
    monkeypatch.setattr(plugins, "_installed", lambda _: None)
    monkeypatch.setattr(plugins, "CHECKOUT", tmp_path)
    with pytest.raises(InputError, match=r"`pip install \.` builds it, or `make plugins`"):
        plugins.ort_library()


def test_the_newest_build_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "CHECKOUT", tmp_path)
    for age, name in ((100, "old"), (0, "new")):
        folder = tmp_path / "build" / name
        folder.mkdir(parents=True)
        (folder / plugins.ORT_LIBRARY).touch()
        os.utime(folder / plugins.ORT_LIBRARY, (10_000 - age, 10_000 - age))
    assert plugins._built(plugins.ORT_LIBRARY) == tmp_path / "build" / "new" / plugins.ORT_LIBRARY


def test_the_library_describes_itself() -> None:
    info = plugins.library_info(plugins.ort_library())
    assert info["version"][0].isdigit()
    assert info["isa"] in ("plain", "avx2", "avx512", "avx512_bf16")


def test_another_file_is_not_a_library(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(InputError, match=r"text\.so is not an UltraMem library"):
        plugins.library_info(tmp_path / "text.so")


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils' nm lists the symbols")
def test_nothing_else_is_exported() -> None:
    command = ["nm", "-D", "--defined-only", "--format=just-symbols", plugins.ort_library()]
    assert set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()) == EXPORTED


def test_an_unknown_instruction_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copy(plugins.ort_library(), tmp_path / "copy.so")  # a copy decides afresh
    monkeypatch.setenv("ULTRAMEM_CPU", "sse9")
    with pytest.raises(InputError, match="ULTRAMEM_CPU must be plain, avx2, avx512 or avx512_bf16"):
        plugins.library_info(Path(copy))


def test_registering_fails_where_the_setting_is_wrong() -> None:
    script = (
        "import sys, onnxruntime as o; s = o.SessionOptions()\n"
        "try: s.register_custom_ops_library(sys.argv[1])\n"
        "except Exception as e: sys.exit(0 if 'ULTRAMEM_CPU must be' in str(e) else 2)\n"
        "sys.exit(1)"
    )
    command = [sys.executable, "-c", script, str(plugins.ort_library())]
    assert subprocess.run(command, env={**os.environ, "ULTRAMEM_CPU": "sse9"}, check=False).returncode == 0


class ApiBase(ctypes.Structure):
    """OrtApiBase, played by Python."""

    GetApi = CALLBACK(ctypes.c_void_p, ctypes.c_uint32)
    GetVersion = CALLBACK(ctypes.c_void_p)
    _fields_ = (("get_api", GetApi), ("get_version", GetVersion))


def register(newest_api: int) -> tuple[int | None, list[bytes]]:
    """RegisterCustomOps against a runtime that knows no API above `newest_api`: its status and the messages made."""
    messages: list[bytes] = []
    made = ctypes.c_int(0)  # stands for a status

    @CALLBACK(ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p)
    def create_status(_code: int, message: bytes) -> int:
        messages.append(message)
        return ctypes.addressof(made)

    version = ctypes.create_string_buffer(b"1.16.3")
    api = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    base = ApiBase(
        ApiBase.GetApi(lambda version: ctypes.addressof(api) if version <= newest_api else None),
        ApiBase.GetVersion(lambda: ctypes.addressof(version)),
    )
    function = ctypes.CDLL(str(plugins.ort_library())).RegisterCustomOps
    function.restype, function.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.POINTER(ApiBase))
    return function(None, ctypes.byref(base)), messages


def test_an_old_runtime_never_passes_for_success() -> None:
    """Reporting success would let the model run on its function bodies without a word."""
    status, messages = register(API_17 - 1)
    assert status is not None
    assert messages == [b"the UltraMem operators need ONNX Runtime 1.17 or newer, found 1.16.3: upgrade onnxruntime"]
    status, messages = register(0)
    assert status is not None and not messages
