"""The kernels' machine code, made without a GPU, in a process where Triton compiles instead of interpreting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'ultramem-deploy[gpu]'")


def check(*arguments: str) -> tuple[int, dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.check_triton", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, json.loads(result.stdout.splitlines()[-1])


def test_kernels_compile_and_do_not_spill() -> None:
    code, answers = check("--architectures", "80,90", "--only", "dots_kernel")
    assert (code, answers["kernels"], answers["spilling"]) == (0, 4, [])
    assert 16 <= answers["most_registers"] <= 255


def test_a_spilling_kernel_is_found() -> None:
    code, answers = check("--architectures", "90", "--only", "weighted_sum_kernel[BLOCKS=4", "--max-registers", "24")
    assert code == 1 and len(answers["spilling"]) == 1
