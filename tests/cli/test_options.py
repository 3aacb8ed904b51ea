"""The flags agree with what they are passed to: names, defaults, choices, help."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import click
import pytest

from ultramem_deploy.cli.app import VERBS
from ultramem_deploy.cli.upcycle import METHODS as UPCYCLING
from ultramem_deploy.converters.engine.options import DTYPES as ENGINE_DTYPES
from ultramem_deploy.converters.engine.options import MODES as ENGINE_MODES
from ultramem_deploy.converters.fold.options import DTYPES as FOLD_DTYPES
from ultramem_deploy.converters.fold.options import MODES
from ultramem_deploy.converters.heal.options import TRAINABLE, HealOptions
from ultramem_deploy.converters.importers.convert import DTYPES
from ultramem_deploy.converters.onnx import TARGETS
from ultramem_deploy.converters.upcycle.stage import METHODS
from ultramem_deploy.runtime.engine_backends import BACKENDS
from ultramem_deploy.runtime.opening import RUNTIMES


def parameters(verb: str) -> dict[str, click.Parameter]:
    command: click.Command = importlib.import_module(f"ultramem_deploy.cli.{verb}").command
    return {parameter.opts[0]: parameter for parameter in command.params}


@pytest.mark.parametrize("method", UPCYCLING)
def test_a_methods_flags_follow_from_its_dataclass(method: str) -> None:
    """Not given, a flag is None, since methods may share one and differ in its default, which the help tells."""
    flags = parameters("upcycle")
    for field in fields(UPCYCLING[method]):
        flag = flags["--" + field.name.replace("_", "-")]
        assert isinstance(flag, click.Option) and flag.help
        assert flag.default is None and str(field.default) in flag.help and method in flag.help
        assert flag.type.convert(str(field.default), None, None) == field.default


@pytest.mark.parametrize(("verb", "kind"), [("heal", HealOptions)])
def test_flags_follow_from_the_dataclass(verb: str, kind: type[Any]) -> None:
    flags = parameters(verb)
    for field in fields(kind):
        flag = flags["--" + field.name.replace("_", "-")]
        assert isinstance(flag, click.Option)
        assert flag.default == field.default and flag.help
        assert flag.type.convert(str(field.default), None, None) == field.default


@pytest.mark.parametrize(
    ("verb", "flag", "known"),
    [
        ("convert", "--dtype", DTYPES),
        ("upcycle", "--method", METHODS),
        ("heal", "--train", TRAINABLE),
        ("fold", "--mode", MODES),
        ("fold", "--dtype", FOLD_DTYPES),
        ("export", "--target", TARGETS),
        ("build", "--backend", BACKENDS),
        ("build", "--dtype", ENGINE_DTYPES),
        ("build", "--mode", ENGINE_MODES),
        ("verify", "--runtime", RUNTIMES),
        ("generate", "--runtime", RUNTIMES),
    ],
)
def test_choices_are_those_of_the_converters(verb: str, flag: str, known: Any) -> None:
    kind = parameters(verb)[flag].type
    assert isinstance(kind, click.Choice)
    assert tuple(kind.choices) == tuple(known)


@pytest.mark.parametrize("verb", ["convert", "upcycle", "heal", "fold", "export", "build"])
def test_every_stage_has_the_shared_options(verb: str) -> None:
    assert parameters(verb).keys() >= {"src", "out", "--overwrite", "--copy", "--quiet", "--json"}


def test_every_verb_has_a_module_and_help_for_every_option() -> None:
    for verb in VERBS:
        for parameter in parameters(verb).values():
            assert isinstance(parameter, click.Argument) or (isinstance(parameter, click.Option) and parameter.help)
