"""`make gpu`: what it says without a GPU, and how it reads what its parts report."""

from __future__ import annotations

import json
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


def test_what_counts_as_failed() -> None:
    good = {"tests": {"failed": []}, "harness_passed": None, "sanitized": None, "benchmarks": {"a": {"figures": []}}}
    assert not gpu.failed(good)
    assert not gpu.failed(good | {"harness_passed": True, "sanitized": {"memcheck": True}})
    for bad in (
        {"tests": {"failed": ["b"]}},
        {"harness_passed": False},
        {"sanitized": {"memcheck": True, "racecheck": False}},
        {"benchmarks": {"a": {"error": "it failed"}}},
    ):
        assert gpu.failed(good | bad)


def test_without_compute_sanitizer_nothing_is_claimed() -> None:
    assert gpu.sanitized(None) is None


@pytest.mark.parametrize("failing", [False, True])
def test_results_bear_the_devices_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
    """With a GPU played by the test: every part's answer is in the file, and a failure is in the exit status too."""
    tests = {"passed": 3, "skipped": 0, "failed": ["b"] if failing else []}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu.built, "cuda_library", lambda: tmp_path / "cuda.so")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "device", lambda: {"name": "NVIDIA H100 80GB (HBM3)"})
    monkeypatch.setattr(gpu, "run_tests", lambda: tests)
    monkeypatch.setattr(gpu, "harness_passed", lambda: True)
    monkeypatch.setattr(gpu, "sanitized", lambda _: None)
    monkeypatch.setattr(gpu, "run_benchmark", lambda name, _: {"figures": [name]})
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == int(failing), result.output
    found = json.loads((tmp_path / "results" / "gpu-NVIDIA-H100-80GB-HBM3-.json").read_text())
    assert found["tests"] == tests and found["harness_passed"] is True
    assert found["benchmarks"] == {name: {"figures": [name]} for name in gpu.BENCHMARKS}
