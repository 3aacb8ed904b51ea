"""The group of verbs: lists them without importing them, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn, cast

import click

from .failures import INTERRUPTED, SIGINT_CODE, USAGE_CODE, message_and_code, one_line

PROGRAM = "ultramem-deploy"
VERBS = {
    "inspect": "What a model is made of, from headers alone.",
    "plan": "What each stage would take and whether it fits, from headers alone.",
    "convert": "Hugging Face or GGUF model to a canonical checkpoint.",
    "upcycle": "Add memory layers to a dense model.",
    "heal": "Train the memory layers on text.",
    "fold": "Fold projections, shuffles and key norms into tables and keys.",
    "profile": "Count which slots a text reads.",
    "quantize": "Store tables as int8, int4 or float8, one scale a row.",
    "export": "Canonical checkpoint to an ONNX bundle.",
    "build": "Canonical checkpoint or bundle to a TensorRT engine.",
    "bundle": "Exported model to a directory that C++ programs and ONNX Runtime GenAI run.",
    "verify": "Compare two models; exit code 1 where they differ.",
    "generate": "Continue a prompt.",
    "diff": "What changed between two checkpoints, down to table rows.",
    "patch": "Apply such changes.",
    "recipes": "List, show, copy and check recipes: whole jobs in a file.",
    "run": "Run a recipe's stages, resumably.",
    "doctor": "Check this machine and print what to fix.",
}


class LazyGroup(click.Group):
    """Imports a verb's module when that verb runs: `--help` and the verbs that need no torch stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Caught before click does, which would print an empty line and "Aborted!".
            click.echo(INTERRUPTED, err=True)
            raise click.exceptions.Exit(SIGINT_CODE) from None

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As click's, but every failure that a user can act on is one line. A traceback means a bug of ours."""
        run = cast(Callable[..., Any], super().main)
        _show_any_name()
        extra["prog_name"] = PROGRAM
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except Exception as error:
            _fail(error)
        sys.exit(code if isinstance(code, int) else 0)


def _show_any_name() -> None:
    """Let a name be printed where the terminal's encoding lacks its letters, or it is no text at all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")


def _fail(error: Exception) -> NoReturn:
    known = message_and_code(error)
    if known is None:
        raise error
    message, code = known
    click.echo(one_line(message), err=True)
    sys.exit(code)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from ..checkpoint.provenance import tool_version

        click.echo(f"{PROGRAM} {tool_version()}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version."
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Convert, fold, export and run UltraMem sparse memory models.

    Every stage reads a directory and writes another: VERB SRC OUT. Run the same command again after an interruption
    and it continues.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE_CODE)
