"""`make gpu`: what it says without a GPU, and how it reads what its parts report."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tools import gpu

REPORT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><error/></testcase>
<testcase name="d"><skipped/></testcase></testsuite></testsuites>"""


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 0
    assert result.output == "no GPU: torch sees no CUDA device here, so nothing was run and nothing written\n"


def test_a_failed_test_is_named(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    assert gpu.read_report(report)["failed"] == ["pytest did not run"]
    report.write_text(REPORT)
    assert gpu.read_report(report) == {"passed": 1, "skipped": 1, "failed": ["b", "c"]}


def test_a_benchmark_that_fails_is_an_error(tmp_path: Path) -> None:
    result = gpu.run_benchmark("gpu_operators", tmp_path / "absent.so")
    assert result == {"error": "-m benchmarks.gpu_operators failed"}


def test_every_benchmark_exists() -> None:
    for name in gpu.BENCHMARKS:
        assert (gpu.built.CHECKOUT / "benchmarks" / f"{name}.py").is_file()
