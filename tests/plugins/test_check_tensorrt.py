"""The checks of the TensorRT plugins: what they find here, what they say where something is missing, that they fail."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import ultramem_deploy as um
from tests import builders
from tools.check_tensorrt import __main__ as check
from tools.check_tensorrt import built, engines, registry, spills
from ultramem_deploy.ops import OPERATORS

NAMES = [operator.name for operator in OPERATORS]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 2072 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    16 bytes stack frame, 20 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers
"""


@pytest.fixture(scope="module")
def library() -> Path:
    found = built.library()
    if found is None:
        pytest.skip(built.NOT_BUILT)
    return found


def test_the_harness_passes(library: Path) -> None:
    result = subprocess.run([built.harness(), library], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    checks = re.search(r"(\d+) checks, 0 failed", result.stdout)
    assert checks is not None and int(checks[1]) > 1000


def test_the_plugins_run(library: Path) -> None:
    """Every plugin is enqueued over kernels that run on the host, and gives the formula's numbers."""
    command = [built.harness(), built.plugins_on_host()]
    life = subprocess.run(command, capture_output=True, text=True, check=False)
    run = subprocess.run([*command, "host"], capture_output=True, text=True, check=False)
    assert life.returncode == 0 and run.returncode == 0, run.stdout + run.stderr
    checks = [int(re.search(r"(\d+) checks, 0 failed", result.stdout)[1]) for result in (life, run)]  # type: ignore[index]
    given = 9 * 3 + 1  # nine cases, three checks each and one output more
    own = 8 * (3 + 3 + 2 * (1 + 3))  # eight with tables: made, refused, too early, run, and two contexts that run
    assert checks[1] == checks[0] + given + own


def test_the_harness_fails_for_another_library(library: Path, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    ort = next((built.BUILD / "plugins" / "onnxruntime").glob("libultramem_ort.so"))
    for other in (tmp_path / "text.so", ort):
        assert subprocess.run([built.harness(), other], capture_output=True, check=False).returncode == 2


def test_no_kernel_spills(library: Path) -> None:
    kernels = spills.kernels(built.ptxas_reports())
    assert {kernel.sm for kernel in kernels} == {"80", "86", "89", "90", "100", "120"}
    assert [kernel for kernel in kernels if kernel.spilled or kernel.stack] == []


def test_a_report_is_read() -> None:
    assert spills.parse(REPORT) == [
        spills.Kernel("first", "80", stack=0, spilled=0, registers=38),
        spills.Kernel("second", "90a", stack=16, spilled=32, registers=255),
    ]
    with pytest.raises(ValueError, match="nothing of first on sm_80"):
        spills.parse(REPORT[: REPORT.index("    0 bytes")])


@pytest.mark.skipif(NVCC is None, reason="nvcc compiles a kernel that spills")
def test_a_spilling_kernel_is_found(tmp_path: Path) -> None:
    source = tmp_path / "spill.cu"
    loads = "float a[128]; for (int i = 0; i < 128; ++i) a[i] = in[i * 31];"
    mix = "for (int r = 0; r < n; ++r) for (int i = 0; i < 128; ++i) a[i] = a[i] * a[(i * 7 + 1) % 128] + in[r];"
    store = "for (int i = 0; i < 128; ++i) out[i] = a[i];"
    kernel = "__global__ void __launch_bounds__(1024, 2) spill(const float* in, float* out, int n)"
    source.write_text(f"{kernel} {{\n#pragma unroll\n{loads}\n{mix}\n{store}\n}}\n")
    keep = built.CHECKOUT / "plugins" / "kernels" / "cuda" / "keep_ptxas_report.py"
    target = tmp_path / "spill.o"
    command = ["python3", keep, NVCC, "-arch=sm_90", "-Xptxas=-v", "-c", source, "-o", target]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "ptxas info" not in result.stderr, result.stderr
    outcome = check.Outcome()
    check.check_spills([Path(f"{target}.ptxas")], outcome)
    assert len(outcome.failures) == 1 and re.search(r"spill\S+ spills \d+ bytes on sm_90", outcome.failures[0])


def test_what_is_missing_is_said_and_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda: False)
    result = CliRunner().invoke(check.main, ["--build", str(tmp_path)])
    assert result.exit_code == 0
    assert json.loads(result.stdout.splitlines()[-1]) == {"creators": [], "harness_passed": False, "engines_built": 0}
    for part in ("the registry", "the harness", "register spills"):
        assert f"skipped: {part}: libultramem_tensorrt.so is not built" in result.stderr
    assert "skipped: engines: tensorrt-rtx is not installed" in result.stderr


def test_everything_here(library: Path, tmp_path: Path) -> None:
    """In a process of its own: TensorRT's registry takes a library once."""
    command = [sys.executable, "-m", "tools.check_tensorrt", "--demo", str(tmp_path)]
    result = subprocess.run(command, cwd=built.CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    answers = json.loads(result.stdout.splitlines()[-1])
    assert answers["harness_passed"] is True
    assert answers["engines_built"] == (len(engines.KINDS) if engines.installed() else 0)
    assert answers["creators"] == (NAMES if registry.runtime() else [])


def test_a_plugin_that_takes_wrong_fields_does_not_count() -> None:
    """The registry's part of the check is one that can fail: a creator that refuses nothing, or lacks a field."""

    class Careless:
        field_names = (SimpleNamespace(name="k"),)

        def create_plugin(self, *_: object) -> str:
            return "plugin"

    trt = SimpleNamespace(
        PluginField=lambda *_: None,
        PluginFieldType=SimpleNamespace(INT64=0, FLOAT32=1, CHAR=2),
        PluginFieldCollection=list,
        TensorRTPhase=SimpleNamespace(BUILD=0, RUNTIME=1),
        get_plugin_registry=lambda: SimpleNamespace(load_library=lambda _: 1, get_creator=lambda *_: Careless()),
    )
    assert registry.creators(trt, Path("careless.so")) == []  # type: ignore[arg-type]


def test_an_engine_that_lacks_something_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason=engines.MISSING)
    monkeypatch.setattr(engines, "KINDS", {"V2": builders.V2})
    real = um.build

    def without_logits(*arguments: Any, **options: Any) -> dict[str, Any]:
        result = real(*arguments, **options)
        return {**result, "outputs": result["outputs"][1:], "profiles": []}

    monkeypatch.setattr(um, "build", without_logits)
    outcome = check.Outcome()
    check.check_engines(tmp_path, outcome)
    assert outcome.answers["engines_built"] == 0
    assert outcome.failures == ["the engine of V2: its outputs, profiles are not as expected"]
