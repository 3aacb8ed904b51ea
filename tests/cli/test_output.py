"""How measured numbers are shown."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Chain, Invoke
from ultramem_deploy.checkpoint.provenance import plain
from ultramem_deploy.cli.output import number


@pytest.mark.parametrize(
    ("value", "shown"), [(12.3456, "12.3"), (0.0, "0"), (7, "7"), (math.inf, "not finite"), (None, "not finite")]
)
def test_a_recorded_number_is_shown_as_a_fresh_one(value: float | None, shown: str) -> None:
    """What is up to date tells its receipt from JSON, which has no infinity."""
    assert number(value) == number(plain(value)) == shown


@pytest.mark.parametrize("out", ["-out", "out put"])
def test_the_next_command_can_be_run_as_it_is_printed(
    um: Invoke, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = um("fold", "--mode", "keys", "--", chain.paths["heal"], out)
    assert result.exit_code == 0, result.stderr
    program, *arguments = shlex.split(result.stdout.splitlines()[-1].removeprefix("next: "))
    assert program == "ultramem-deploy"
    again = um(*arguments)
    assert again.exit_code == 0, again.stderr


def test_the_current_directory_is_not_replaced(
    um: Invoke, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell would go on working in a directory that is no longer there."""
    monkeypatch.chdir(tmp_path)
    result = um("fold", chain.paths["heal"], ".")
    assert result.exit_code == 2 and result.stderr.endswith(
        f"{tmp_path}: is the current directory, which the output would replace; run it from another one\n"
    )
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))
    assert um("fold", chain.paths["heal"], tmp_path / "out").exit_code == 0
    monkeypatch.chdir(tmp_path / "out")
    again = um("fold", chain.paths["heal"], ".")
    assert again.exit_code == 0 and "(up to date)" in again.stdout
    assert again.stdout.splitlines()[-1].endswith(f" {tmp_path}/out {tmp_path}/out-export")
