"""`verify REF CAND`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from ..errors import CheckFailed
from .options import EXISTING, json_option, quiet_option, runtime_option, verb
from .output import aligned, counted, number, print_json, progress_bar


@verb("verify", "healed folded --max-abs 1e-4")
@click.argument("reference", metavar="REF", type=EXISTING)
@click.argument("candidate", metavar="CAND", type=EXISTING)
@click.option("--text", type=EXISTING, help="UTF-8 text to compare on. Default: the Python language reference.")
@click.option("--tokens", type=int, default=512, show_default=True, help="How many tokens to compare.")
@click.option("--max-abs", type=float, help="Largest absolute logit error that passes.  [default: 0.001; none where "
              "one side alone is quantised]")  # fmt: skip
@click.option("--kl", type=float, help="Largest mean KL divergence, nats a token, that passes.  [default: 1e-05; 0.02, "
              "0.05 or 0.2 where one side alone is int8, float8_e4m3 or int4]")  # fmt: skip
@runtime_option
@quiet_option
@json_option
def command(reference: Path, candidate: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Compare CAND with REF (run in float32) on the same tokens; exit code 1 where they differ by more than the limits.

    REF and CAND are canonical checkpoints, exported bundles or source models. Tokens whose selection hangs on a tie are
    left out of the largest error, at most 1% of them.
    """
    with progress_bar("verify", quiet) as progress:
        result = pipeline.verify(reference, candidate, check=False, progress=progress, **options)
    if as_json:
        print_json(result)
    else:
        click.echo(f"verify: {candidate} against {reference}: {'passed' if result['passed'] else 'FAILED'}")
        for line in aligned(_report(result)):
            click.echo(f"  {line}")
    if not result["passed"]:
        raise CheckFailed(result["reason"])


def _report(result: dict[str, Any]) -> dict[str, str]:
    layers = counted(result["compared_memory_layers"], "memory layer")
    before, after = result["perplexity_reference"], result["perplexity_candidate"]
    tokens = f"{result['tokens']}, {result['excluded_tokens']} of them excluded as ties"
    return {
        "max abs logit error": f"{number(result['max_abs_logit_error'])} ({_limit(result['max_abs'])})",
        "mean KL": f"{number(result['mean_kl'])} nats a token (limit {number(result['kl'])})",
        "top-1 agreement": f"{result['top1_agreement']:.2%}",
        "perplexity": f"{number(before, 6)} reference, {number(after, 6)} candidate",
        "index agreement": f"{result['index_agreement']:.4%} over {layers}",
        "tokens": tokens,
        **({"tolerance": result["tolerance"]} if result["tolerance"] else {}),
        "runtimes": f"{result['reference_runtime']} reference, {result['candidate_runtime']} candidate",
        "worst": _worst(result),
    }


def _limit(value: float | None) -> str:
    return "no limit" if value is None else f"limit {number(value)}"


def _worst(result: dict[str, Any]) -> str:
    worst = result["worst"]
    values = f"{number(worst['reference'], 9)} became {number(worst['candidate'], 9)}"
    return f"{worst['tensor']} at token {worst['token']}: {values}"
