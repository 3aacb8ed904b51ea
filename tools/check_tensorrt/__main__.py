"""Runs every check of the TensorRT plugins that needs no GPU; the last line is a JSON object.

    python -m tools.check_tensorrt [--build build/native] [--demo demo/out]

`creators`: operators whose plugins TensorRT's registry found and created; `harness_passed`: whether the program that
drives the plugins without TensorRT ended well; `engines_built`: engines that tensorrt-rtx built. What could not be run
is named on standard error and counts as not passed; the exit status is 1 only where something ran and failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ultramem_deploy.ops import OPERATORS

from . import built, engines, registry, spills


@dataclass
class Outcome:
    """What the checks found: the JSON object of the last line, and what failed."""

    answers: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def check_registry(library: Path | None, outcome: Outcome) -> None:
    """Fills in `creators`."""
    outcome.answers["creators"] = []
    trt = registry.runtime()
    if library is None or trt is None:
        _skip("the registry", built.NOT_BUILT if library is None else registry.MISSING)
        return
    found = registry.creators(trt, library)
    outcome.answers["creators"] = found
    click.echo(
        f"TensorRT {trt.__version__} loads {library.name} and creates {', '.join(found) or 'no plugin'}", err=True
    )
    if len(found) != len(OPERATORS):
        outcome.failures.append(f"the registry makes {len(found)} of {len(OPERATORS)} plugins")


def check_harness(library: Path | None, on_host: Path | None, harness: Path | None, outcome: Outcome) -> None:
    """Fills in `harness_passed`: plugins through their life, those on the host run too."""
    outcome.answers["harness_passed"] = False
    if library is None or on_host is None or harness is None:
        _skip("the harness", built.NOT_BUILT)
        return
    passed = [run_harness(harness, library), run_harness(harness, on_host, "host")]
    outcome.answers["harness_passed"] = all(passed)
    if not all(passed):
        outcome.failures.append("the harness failed")


def run_harness(harness: Path, library: Path, *memory: str) -> bool:
    """Drives the plugins of a library, and runs them where `memory` says where their kernels find it."""
    result = subprocess.run([harness, library, *memory], capture_output=True, text=True, check=False)
    click.echo(f"harness of {library.name}: {(result.stdout + result.stderr).strip()}", err=True)
    return result.returncode == 0


def check_spills(reports: list[Path], outcome: Outcome) -> None:
    """Adds a failure where a kernel spills registers."""
    if not reports:
        _skip("register spills", built.NOT_BUILT)
        return
    kernels = spills.kernels(reports)
    architectures = sorted({int(kernel.sm) for kernel in kernels})
    most = max(kernel.registers for kernel in kernels)
    click.echo(f"ptxas: {len(kernels)} kernels for sm_{architectures}, at most {most} registers", err=True)
    outcome.failures += [f"{k.name} spills {k.spilled} bytes on sm_{k.sm}" for k in kernels if k.spilled or k.stack]


def check_engines(demo: Path, outcome: Outcome) -> None:
    """Fills in `engines_built`."""
    outcome.answers["engines_built"] = 0
    if not engines.installed():
        _skip("engines", engines.MISSING)
        return
    for name, problem in engines.build_all(demo):
        outcome.answers["engines_built"] += problem is None
        if problem is not None:
            outcome.failures.append(f"the engine of {name}: {problem}")
    click.echo(f"tensorrt-rtx builds {outcome.answers['engines_built']} engines", err=True)


def _skip(what: str, reason: str) -> None:
    click.echo(f"skipped: {what}: {reason}", err=True)


@click.command()
@click.option("--build", type=click.Path(path_type=Path), default=built.BUILD, help="The CMake build folder.")
@click.option("--demo", type=click.Path(path_type=Path), default=engines.DEMO, help="What `make demo` made, if it ran.")
def main(build: Path, demo: Path) -> None:
    """Check the TensorRT plugins without a GPU."""
    outcome = Outcome()
    library = built.library(build)
    check_registry(library, outcome)
    check_harness(library, built.plugins_on_host(build), built.harness(build), outcome)
    check_spills(built.ptxas_reports(build), outcome)
    check_engines(demo, outcome)
    for failure in outcome.failures:
        click.echo(f"failed: {failure}", err=True)
    click.echo(json.dumps(outcome.answers))
    sys.exit(1 if outcome.failures else 0)


if __name__ == "__main__":
    main()
