"""What only a process of its own shows: signals, closed pipes, terminals."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ultramem_deploy

ROOT = Path(ultramem_deploy.__file__).parents[1]
Start = Callable[..., "subprocess.Popen[str]"]

SLOW_CONVERT = """
import signal, sys, time
from ultramem_deploy.converters.importers import convert
fast = convert.cast
def slow(*arguments):
    print("working", flush=True)
    time.sleep(0.2)
    return fast(*arguments)
convert.cast = slow
from ultramem_deploy.cli import main
# Whoever starts the tests in the background may have SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
main(sys.argv[1:])
"""


@pytest.fixture
def start() -> Start:
    """start(*arguments, **options): Python on this checkout, with pipes unless told otherwise."""

    def run(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, text=True, **{"env": environment} | pipes | options)

    return run


def test_interrupted_convert_leaves_nothing_and_continues(start: Start, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("convert", source, out, "--dtype", "bfloat16")
    process = start("-c", SLOW_CONVERT, *arguments)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted: run the same command again to continue\n"
    assert not out.exists()
    again = start("-m", "ultramem_deploy", *arguments)
    printed, errors = again.communicate(timeout=60)
    assert (again.returncode, errors) == (0, "")
    assert printed.startswith(f"convert: {out}")
    assert sorted(tmp_path.iterdir()) == [out]


def test_a_closed_pipe_is_quiet(start: Start, source: Path) -> None:
    process = start("-m", "ultramem_deploy", "inspect", source, "--json")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) != 0
    process.stderr.close()


def test_help_of_every_verb_holds_an_example(start: Start) -> None:
    script = (
        "from click.testing import CliRunner\n"
        "from ultramem_deploy.cli import main\n"
        "from ultramem_deploy.cli.app import VERBS\n"
        "for verb in VERBS:\n"
        "    shown = CliRunner().invoke(main, [verb, '--help'])\n"
        "    assert shown.exit_code == 0 and f'  ultramem-deploy {verb}' in shown.output, verb\n"
    )
    assert start("-c", script).communicate(timeout=60)[1] == ""


BAR = """
import sys, time
from ultramem_deploy.cli.output import progress_bar
with progress_bar("convert", quiet="--quiet" in sys.argv) as progress:
    for done in range(5):
        if progress:
            progress(done << 20, 4 << 20, "decoder")
        time.sleep(0.15)
print("None" if progress is None else "shown")
"""


def _on_terminal(start: Start, *arguments: str) -> tuple[str, str]:
    """(stdout, what the terminal behind stderr saw)."""
    ours, theirs = pty.openpty()
    process = start("-c", BAR, *arguments, stderr=theirs)
    printed, _ = process.communicate(timeout=60)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    return printed.strip(), seen.decode()


def test_the_bar_shows_bytes_on_a_terminal(start: Start) -> None:
    printed, seen = _on_terminal(start)
    assert printed == "shown"
    assert "convert" in seen and "4.0 MiB/4.0 MiB" in seen


def test_quiet_shows_no_bar(start: Start) -> None:
    assert _on_terminal(start, "--quiet") == ("None", "")


def test_no_bar_where_stderr_is_no_terminal(start: Start) -> None:
    printed, errors = start("-c", BAR).communicate(timeout=60)
    assert (printed.strip(), errors) == ("None", "")


def test_a_closed_output_is_no_bug(start: Start, source: Path) -> None:
    """As `>&-` leaves it, or a service that has no output."""
    script = "import sys\nsys.stdout.close()\nsys.stdout = None\nfrom ultramem_deploy.cli import main\nmain()"
    for verb in ("inspect", "plan"):
        process = start("-c", script, verb, source)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_terminal_cannot_show(start: Start, source: Path, tmp_path: Path, encoding: str) -> None:
    """Letters that its encoding lacks, and bytes that are no UTF-8: shown as they can be, used as they are."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    name = os.fsdecode("m\u00f6del-\u6a21".encode() + b"\xff")
    shutil.copytree(source, tmp_path / name)
    out = tmp_path / f"out-{name}"
    for arguments in (
        ("convert", tmp_path / name, out, "--dtype", "bfloat16"),
        ("convert", tmp_path / name, out, "--dtype", "bfloat16", "--json"),
        ("inspect", out),
        ("plan", out),
        ("export", out, tmp_path / f"bundle-{name}"),
    ):
        process = start("-m", "ultramem_deploy", *arguments, env=environment)
        printed, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors and printed
    process = start("-m", "ultramem_deploy", "generate", tmp_path / f"bundle-{name}", "--prompt", "a", env=environment)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.count("\n") == 1
    assert errors.endswith("ONNX Runtime opens no path that is not UTF-8; rename the directory\n")
