"""`fold SRC OUT`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from .. import pipeline
from .options import (
    EXISTING,
    StageOptions,
    batch_option,
    dtype_option,
    executor_option,
    jobs_option,
    memory_budget_option,
    stage_options,
    verb,
)
from .output import counted, number, run_stage


@verb("fold", "healed folded --dtype float32")
@click.option("--mode", type=click.Choice(["expand", "shuffle", "rank1", "keys", "auto"]),
              help="expand (the default): one physical row a virtual slot, already projected. shuffle: rows in "
              "retrieval order, or an int32 shuffle. keys: the key norm alone, which the others fold too. rank1: keys, "
              "and stage 1 reads one key matrix a side. auto: what `plan` chooses.")  # fmt: skip
@click.option("--order", type=click.Choice(["frequency"]), help="Instead: sort table rows by how often they are read.")
@click.option("--profile", type=EXISTING, help="Counts that `profile --out` wrote, for --order frequency.")
@click.option(
    "--text", type=EXISTING, help="Text to count on where no --profile is given. Default: the Python reference."
)
@batch_option(help="Batch sizes that --mode auto chooses for. Default: 1,16,64,512.")
@dtype_option
@jobs_option
@memory_budget_option
@executor_option
@stage_options
def command(
    common: StageOptions,
    mode: str | None,
    order: str | None,
    profile: Path | None,
    text: Path | None,
    dtype: str,
    batch: tuple[int, ...] | None,
    jobs: int | None,
    memory_budget: int,
    executor: str,
) -> None:
    """Fold what does not depend on the input into the tables and keys of SRC, exactly; writes OUT."""
    run_stage(
        "fold",
        common,
        lambda progress: pipeline.fold(
            common.src,
            common.out,
            mode=mode,
            dtype=dtype,
            batch=batch,
            order=order,
            profile=profile,
            text=text,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            memory_budget=memory_budget,
            executor=executor,
            progress=progress,
        ),
        _summary,
        "export {out} {beside}",
    )


def _summary(result: dict[str, Any]) -> list[str]:
    folds = Counter(layer["choice"] for layer in result["layers"])
    how = ", ".join(f"{count} by {fold}" for fold, count in folds.items())
    return [
        f"{counted(len(result['layers']), 'layer')}: {how}; function preserved to max abs error "
        f"{number(result['max_abs_error'])}, relative {number(result['max_relative_error'])}",
        f"index agreement at least {result['min_index_agreement']:.4%}",
        *_rounding(result),
        *(_packed(table) for table in result.get("tables", ())),
    ]


def _packed(table: dict[str, Any]) -> str:
    return (
        f"table {table['table']}: the hottest 1% of rows take {table['hottest_1_percent']:.1%} of the accesses; 90% of "
        f"them touch {table['4KiB_pages_after']:,} pages of 4 KiB, {table['4KiB_pages_before']:,} before"
    )


def _rounding(result: dict[str, Any]) -> list[str]:
    halves = sorted({layer["table_dtype"] for layer in result["layers"]} - {"float32"})
    return [f"tables rounded to {', '.join(halves)}; --dtype float32 keeps them exact to float32"] if halves else []
