"""`generate MODEL --prompt T`."""

from __future__ import annotations

from pathlib import Path

import click

from .. import pipeline
from ..tables import MODES
from .options import EXISTING, json_option, quiet_option, runtime_option, verb
from .output import print_json


@verb("generate", 'bundle --prompt "The with statement" --max-new-tokens 64 --runtime ort')
@click.argument("model", type=EXISTING)
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, help="Stop after this many tokens.")
@runtime_option
@click.option(
    "--tables",
    type=click.Choice(MODES),
    help="Where tables lie: one copy on huge pages, or the mapped files (for tables larger than memory). Default: "
    "$ULTRAMEM_TABLES, else auto: resident where the copy takes at most half of the available memory. Engines put "
    "theirs on the GPU.",
)
@quiet_option
@json_option
def command(
    model: Path, prompt: str, max_new_tokens: int, runtime: str | None, tables: str | None, quiet: bool, as_json: bool
) -> None:
    """Continue a prompt greedily; the text streams to stdout, the speed goes to stderr."""
    printed = 0

    def show(piece: str) -> None:
        nonlocal printed
        click.echo(piece, nl=False)
        printed += len(piece)

    result = pipeline.generate(
        model,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        runtime=runtime,
        tables=tables,
        on_text=None if as_json else show,
    )
    if as_json:
        print_json(result)
        return
    # The last character may have stayed unfinished, and was held back.
    click.echo(result["text"][printed:])
    if not quiet:
        click.echo(
            f"{result['runtime']}: {len(result['ids'])} tokens at {result['tokens_per_second']:.1f} tokens/s "
            f"after {result['prompt_tokens']} of prompt in {result['prefill_seconds']:.2f} s",
            err=True,
        )
