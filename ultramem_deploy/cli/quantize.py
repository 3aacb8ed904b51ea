"""`quantize SRC OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from .options import EXISTING, StageOptions, jobs_option, memory_budget_option, stage_options, tables_option, verb
from .output import number, run_stage, size


@verb("quantize", "healed quantised --tables int8")
@tables_option()
@click.option("--dense", type=click.Choice(["int8", "int4"]), help="How the decoder's linear layers are stored, by "
              "ONNX Runtime's MatMulNBits quantizer in blocks of 32.")  # fmt: skip
@click.option("--text", type=EXISTING, help="UTF-8 text whose perplexity is told before and after. Default: the Python "
              "language reference, where the model has a tokenizer.")  # fmt: skip
@jobs_option
@memory_budget_option
@stage_options
def command(
    common: StageOptions, tables: str | None, dense: str | None, text: Path | None, jobs: int | None, memory_budget: int
) -> None:
    """Store the tables of SRC as codes with one scale a row, dense weights in blocks; writes OUT, says what it cost."""
    run_stage(
        "quantize",
        common,
        lambda progress: pipeline.quantize(
            common.src,
            common.out,
            tables=tables,
            dense=dense,
            text=text,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            memory_budget=memory_budget,
            progress=progress,
        ),
        _summary,
        "export {out} {beside}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{one['tensor']}: {one['storage']}, relative RMS error {number(one['relative_rms'])}, cosine "
        f"{one['cosine']:.6f}, worst row {one['worst_row']} {number(one['worst_row_relative_error'])}"
        for one in result["tables"]
    ]
    dense = result["dense"]
    if dense:
        error = number(dense["relative_rms"])
        lines.append(f"{dense['tensors']} dense weights: {dense['storage']}, relative RMS error {error}")
    lines.append(f"together: {size(result['bytes_before'])} became {size(result['bytes_after'])}")
    if result["perplexity_before"] is None:
        return [*lines, f"perplexity not measured: {result['text']}"]
    before, after = (number(result[f"perplexity_{when}"], 6) for when in ("before", "after"))
    return [*lines, f"perplexity on {result['tokens']} tokens of {result['text']}: {before} became {after}"]
