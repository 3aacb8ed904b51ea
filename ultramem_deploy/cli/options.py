"""Options that several verbs share, and click options that follow from a dataclass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import click

from ..units import parse_bytes

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

EXISTING = click.Path(exists=True, path_type=Path)
RUNTIMES = click.Choice(["torch", "ort", "ort-bodies", "tensorrt"])
DTYPES = click.Choice(["keep", "float32", "bfloat16", "float16"])

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")
runtime_option = click.option(
    "--runtime",
    type=RUNTIMES,
    help="What runs the model: PyTorch, ONNX Runtime with our kernels or with the operators' function bodies, or "
    "TensorRT. Default: ort for an exported bundle, torch for a checkpoint, tensorrt for an engine.",
)
dtype_option = click.option(
    "--dtype", type=DTYPES, default="keep", show_default=True, help="Stored type; keep leaves it as the source has it."
)


@dataclass(frozen=True)
class StageOptions:
    """What every stage is asked: where from, where to, and how to write."""

    src: Path
    out: Path
    overwrite: bool
    copy: bool
    quiet: bool
    as_json: bool


def verb(name: str, example: str) -> Callable[[Command], click.Command]:
    """`click.command` whose help ends with an example."""
    return click.command(name, epilog=f"\b\nExample:\n  ultramem-deploy {name} {example}")


def stage_options(function: Command) -> Command:
    """The arguments SRC and OUT and the options of every stage, handed over as one `StageOptions`."""

    @functools.wraps(function)
    def wrapper(**given: Any) -> Any:
        common = StageOptions(**{field.name: given.pop(field.name) for field in fields(StageOptions)})
        return function(common, **given)

    return _applied(
        wrapper,
        click.argument("src", type=EXISTING),
        click.argument("out", type=click.Path(path_type=Path)),
        click.option("--overwrite", is_flag=True, help="Replace an output that this tool made otherwise."),
        click.option("--copy", is_flag=True, help="Copy unchanged shards instead of hard-linking them."),
        quiet_option,
        json_option,
    )


jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Chunks computed at a time; never changes a byte. Default: a core each, at most 8.",
)
executor_option = click.option(
    "--executor",
    type=click.Choice(["local", "threads", "processes", "ray"]),
    default="local",
    show_default=True,
    help="Who computes chunks; never changes a byte. local: threads, or processes for 1 GiB and more. "
    "ray: every core of a Ray cluster (extra `ray`).",
)


def tables_option(**settings: Any) -> Decorator:
    """--tables: how quantised tables are stored."""
    choice = click.Choice(["int8", "int4", "float8_e4m3"])
    return click.option("--tables", type=choice, help="How quantize stores the tables.", **settings)


def batch_option(**settings: Any) -> Decorator:
    """--batch N,N,…: batch sizes."""
    return click.option("--batch", metavar="N,...", callback=_batches, **settings)


def _batches(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        numbers = tuple(int(part) for part in value.split(",")) if value is not None else None
    except ValueError:
        numbers = ()
    if numbers is not None and (not numbers or min(numbers) < 1):
        raise click.BadParameter(f"expected positive numbers such as 1,16,64, found {value!r}", ctx, param)
    return numbers


def _bytes(ctx: click.Context, param: click.Parameter, value: str) -> int:
    return parse_bytes(value, param.opts[0])


memory_budget_option = click.option(
    "--memory-budget",
    metavar="SIZE",
    callback=_bytes,
    default="2GiB",
    show_default=True,
    help="Bounds the chunks in memory at a time, such as 500MB or 2GiB; never changes a byte.",
)


def dataclass_options(kind: type[Any]) -> Decorator:
    """One option a field of the dataclass `kind`: name, type and default from the field, help from its metadata."""
    options = [_field_option(field) for field in fields(kind)]
    return lambda function: _applied(function, *options)


def _field_option(field: Field[Any]) -> Decorator:
    choices = field.metadata.get("choices")
    return click.option(
        "--" + field.name.replace("_", "-"),
        field.name,
        type=click.Choice(list(choices)) if choices else type(field.default),
        default=field.default,
        show_default=True,
        help=field.metadata.get("help"),
    )


def method_options(methods: Mapping[str, type[Any]]) -> Decorator:
    """One option a field of any method's dataclass; not given, it is None, and the method's own default holds."""
    by_name: dict[str, dict[str, Field[Any]]] = {}
    for method, kind in methods.items():
        for field in fields(kind):
            by_name.setdefault(field.name, {})[method] = field
    return lambda function: _applied(function, *(_method_option(found) for found in by_name.values()))


def _method_option(by_method: Mapping[str, Field[Any]]) -> Decorator:
    field = next(iter(by_method.values()))
    choices = field.metadata.get("choices")
    defaults = {one.default for one in by_method.values()}
    shown = str(field.default) if len(defaults) == 1 else ", ".join(f"{m} {f.default}" for m, f in by_method.items())
    return click.option(
        "--" + field.name.replace("_", "-"),
        field.name,
        type=click.Choice(list(choices)) if choices else type(field.default),
        default=None,
        help=f"{'/'.join(by_method)}: {field.metadata.get('help')}  [default: {shown}]",
    )


def _applied(function: Command, *options: Decorator) -> Command:
    """As if the options stood above `function` in this order."""
    for option in reversed(options):
        function = option(function)
    return function
