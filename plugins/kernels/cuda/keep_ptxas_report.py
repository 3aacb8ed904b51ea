"""Runs a compiler's command and keeps what ptxas reports beside the object: `keep_ptxas_report.py nvcc ... -o X.o`.

What is no report of ptxas (warnings, errors) goes to the terminal as ever; the report becomes X.o.ptxas.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(command: list[str]) -> int:
    """The compiler's exit status."""
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = result.stderr.splitlines(keepends=True)
    report = [line for line in lines if _is_report(line)]
    sys.stderr.writelines(line for line in lines if not _is_report(line))
    if "-o" in command and report:
        Path(command[command.index("-o") + 1] + ".ptxas").write_text("".join(report))
    return result.returncode


def _is_report(line: str) -> bool:
    return line.startswith("ptxas info") or "bytes stack frame" in line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
