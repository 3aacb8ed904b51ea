"""Every check and benchmark that needs a GPU: `python -m tools.gpu`, which is `make gpu`.

Writes benchmarks/results/gpu-DEVICE.json: the machine, what the tests, the plugins' harness and compute-sanitizer said,
every benchmark's figures. Where there is no GPU it says so in one line and ends well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import torch

from benchmarks.common import machine

from .check_tensorrt import built
from .check_tensorrt.__main__ import run_harness

RESULTS = built.CHECKOUT / "benchmarks" / "results"
TESTS = "tests/gpu"
# Every script takes --library and --json.
BENCHMARKS = ("gpu_operators", "gpu_decode")


def device() -> dict[str, Any]:
    """The GPU that torch sees."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def run_tests(tests: str = TESTS) -> dict[str, Any]:
    """Counts of tests by outcome, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", tests, f"--junitxml={report}"]
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        subprocess.run(command, cwd=built.CHECKOUT, stdout=sys.stderr, env=environment, check=False)
        return read_report(report)


def read_report(report: Path) -> dict[str, Any]:
    """What a JUnit report says; no report at all is a failure."""
    if not report.is_file():
        return {"passed": 0, "skipped": 0, "failed": ["pytest did not run"]}
    found = list(ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in found if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in found)
    return {"passed": len(found) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def harness_passed() -> bool | None:
    """Whether the TensorRT plugins passed their harness on the device; None where they are not built."""
    harness, library = built.harness(), built.library()
    return None if harness is None or library is None else run_harness(harness, library, "device")


def sanitized(tool: str | None) -> dict[str, bool] | None:
    """Whether the harness on the device is clean under compute-sanitizer's tools; None where `tool` is missing."""
    harness, library = built.harness(), built.library()
    if tool is None or harness is None or library is None:
        return None
    command = [tool, "--error-exitcode", "9"]
    return {
        check: subprocess.run([*command, "--tool", check, harness, library, "device"], check=False).returncode == 0
        for check in ("memcheck", "racecheck", "synccheck")
    }


def run_benchmark(name: str, library: Path) -> dict[str, Any]:
    """A benchmark's figures, or `error`."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--library", str(library), "--json", str(figures)]
        if subprocess.run(command, cwd=built.CHECKOUT, stdout=sys.stderr, check=False).returncode != 0:
            return {"error": f"{' '.join(command[1:3])} failed"}
        result: dict[str, Any] = json.loads(figures.read_text())
        return result


@click.command()
def main() -> None:
    """Run every check and benchmark that needs a GPU."""
    if not torch.cuda.is_available():
        click.echo("no GPU: torch sees no CUDA device here, so nothing was run and nothing written")
        return
    library = built.cuda_library()
    if library is None:
        sys.exit(built.NOT_BUILT)
    found: dict[str, Any] = {"device": device(), "machine": machine(), "tests": run_tests()}
    found["harness_passed"] = harness_passed()
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found["sanitized"] = sanitized(shutil.which("compute-sanitizer", path=path))
    found["benchmarks"] = {name: run_benchmark(name, library) for name in BENCHMARKS}
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = RESULTS / f"gpu-{re.sub(r'[^A-Za-z0-9]+', '-', found['device']['name'])}.json"
    results.write_text(json.dumps(found, indent=2) + "\n")
    click.echo(f"wrote {results}")
    sys.exit(1 if failed(found) else 0)


def failed(found: dict[str, Any]) -> bool:
    """Whether anything that ran did not end well."""
    checks = [found["harness_passed"], *(found["sanitized"] or {}).values()]
    errors = ["error" in result for result in found["benchmarks"].values()]
    return bool(found["tests"]["failed"]) or False in checks or any(errors)


if __name__ == "__main__":
    main()
