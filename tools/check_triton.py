"""Compiles the Triton kernels to machine code without a GPU and reads what each takes: `python -m tools.check_triton`.

The last line is a JSON object: `kernels` compiled, `architectures`, `most_registers`, and `spilling`: the kernels that
use local memory, which makes the exit status 1.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import click

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
ROWS = ("rows", "width", "core_width", "taken", "blocks")
SIDES = ("heads", "rows", "cols", "k")


@dataclass(frozen=True)
class Variant:
    """A kernel as a wrapper launches it: pointer types, integer arguments and constants.

    Tables are bfloat16, everything else float32 and int64; sizes as of P1's models.
    """

    module: str
    kernel: str
    pointers: dict[str, str]
    integers: tuple[str, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.kernel}[{', '.join(f'{k}={v}' for k, v in self.constants.items())}]"


@dataclass(frozen=True)
class Usage:
    """What ptxas gave a kernel, bytes and registers a thread."""

    name: str
    architecture: int
    registers: int
    local: int


SUM = {"table": "*bf16", "addresses": "*i64", "scores": "*fp32", "out": "*fp32"}
DOTS = {"table": "*bf16", "addresses": "*i64", "vectors": "*fp32", "out": "*fp32"}
GRADIENT = {"gradient": "*bf16", "order": "*i64", "ends": "*i64", "addresses": "*i64", "scores": "*fp32",
            "vectors": "*fp32"}  # fmt: skip
SIDE = {"scores": "*fp32", "factor": "*fp32", "indices": "*i64"}
PAIRS = {"row_scores": "*fp32", "col_scores": "*fp32", "core": "*fp32", "row_kept": "*i64", "col_kept": "*i64",
         "scores": "*fp32", "indices": "*i64"}  # fmt: skip
TOPK_GRADIENT = {"gradient": "*fp32", "indices": "*i64", "row_scores": "*fp32", "col_scores": "*fp32", "core": "*fp32",
                 "row_gradient": "*fp32", "col_gradient": "*fp32", "core_gradient": "*fp32"}  # fmt: skip
VARIANTS = (
    Variant("rows", "weighted_sum_kernel", SUM, ROWS, {"BLOCKS": 1, "ONE_CORE": True, "ROWS": 16, "COLUMNS": 512}),
    Variant("rows", "weighted_sum_kernel", SUM, ROWS, {"BLOCKS": 1, "ONE_CORE": False, "ROWS": 16, "COLUMNS": 512}),
    Variant("rows", "weighted_sum_kernel", SUM, ROWS, {"BLOCKS": 4, "ONE_CORE": True, "ROWS": 8, "COLUMNS": 128}),
    Variant("rows", "dots_kernel", DOTS, ROWS, {"ONE_BLOCK": True, "ROWS": 8, "COLUMNS": 256}),
    Variant("rows", "dots_kernel", DOTS, ROWS, {"ONE_BLOCK": False, "ROWS": 8, "COLUMNS": 256}),
    Variant("rows", "table_gradient_kernel", GRADIENT, ROWS, {"ONE_CORE": True, "ROWS": 8, "COLUMNS": 512}),
    Variant("topk", "side_kernel", SIDE, ("heads", "keys", "keep"), {"RANK": 2, "KEEP": 64, "CHUNK": 512}),
    Variant("topk", "pairs_kernel", PAIRS, (*SIDES, "row_keep", "col_keep"),
            {"RANK": 2, "CORES": 2, "KEEP": 64, "CHUNK": 512}),
    Variant("topk", "gradient_kernel", TOPK_GRADIENT, SIDES, {"RANK": 2, "CORES": 2, "KEEP": 64, "PAIRS": 16}),
    Variant("topk", "gradient_kernel", TOPK_GRADIENT, SIDES, {"RANK": 2, "CORES": 2, "KEEP": 128, "PAIRS": 16}),
)  # fmt: skip


def compiled(variant: Variant, architecture: int, max_registers: int | None = None) -> Usage:
    """Compile one variant for sm_`architecture`."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"ultramem_deploy.ops.triton_kernels.{variant.module}"), variant.kernel)
    integers = {name: "i64" if name == "rows" and variant.module == "rows" else "i32" for name in variant.integers}
    aligned = [*variant.pointers, *(name for name in ("width", "core_width") if name in integers)]
    source = ASTSource(
        fn=kernel,
        signature={**variant.pointers, **integers, **dict.fromkeys(variant.constants, "constexpr")},
        constexprs={(kernel.arg_names.index(name),): value for name, value in variant.constants.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": max_registers}
    code = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return _usage(variant.name, architecture, code.asm["cubin"])


def _usage(name: str, architecture: int, cubin: bytes) -> Usage:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = USAGE.search(report)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of {name} on sm_{architecture}")
    return Usage(name, architecture, int(found[1]), int(found[2]) + int(found[3]))


def _chosen(only: str) -> Iterable[Variant]:
    return [variant for variant in VARIANTS if only in variant.name]


@click.command()
@click.option("--architectures", default="80,90,100", show_default=True, help="Compute capabilities, without the dot.")
@click.option("--only", default="", help="Kernels whose name holds this text.")
@click.option("--max-registers", type=int, help="As few registers a thread: to see that a spill is found.")
def main(architectures: str, only: str, max_registers: int | None) -> None:
    """Compile the Triton kernels without a GPU and check that none spills registers."""
    targets = [int(part) for part in architectures.split(",")]
    jobs = [(variant, target, max_registers) for target in targets for variant in _chosen(only)]
    with ProcessPoolExecutor(min(len(jobs), len(os.sched_getaffinity(0)))) as pool:
        usages = list(pool.map(compiled, *zip(*jobs, strict=True)))
    for usage in usages:
        click.echo(
            f"sm_{usage.architecture} {usage.name}: {usage.registers} registers, {usage.local} B local", err=True
        )
    spilling = [f"{usage.name} on sm_{usage.architecture}" for usage in usages if usage.local]
    most = max(usage.registers for usage in usages)
    answers = {"kernels": len(usages), "architectures": targets, "most_registers": most, "spilling": spilling}
    click.echo(json.dumps(answers))
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
