"""`upcycle SRC OUT`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import pipeline
from ..converters.upcycle.identity import IdentityOptions
from ..converters.upcycle.neuron_options import NeuronOptions
from ..cookbook.files import upcycle_options
from ..errors import InputError
from .options import EXISTING, StageOptions, dataclass_options, jobs_option, memory_budget_option, stage_options, verb
from .output import counted, number, run_stage

METHODS: dict[str, IdentityOptions | NeuronOptions] = {"identity": IdentityOptions(), "neurons": NeuronOptions()}


@verb("upcycle", "canonical upcycled --method neurons --text corpus.txt --active 0.5")
@click.option("--method", type=click.Choice(list(METHODS)), default="identity", show_default=True,
              help="identity: memory layers beside the FFNs, outputs bit-identical until they are trained. neurons: "
              "the FFNs' neurons become memory slots, of which a token retrieves a fraction.")  # fmt: skip
@click.option("--recipe", help="Instead of --method and its options: what the upcycle stage of a recipe says.")
@click.option("--text", type=EXISTING, help="neurons: UTF-8 text to calibrate on. Default: the Python reference.")
@dataclass_options(IdentityOptions)
@dataclass_options(NeuronOptions)
@jobs_option
@memory_budget_option
@stage_options
def command(
    common: StageOptions,
    recipe: str | None,
    method: str,
    text: Path | None,
    jobs: int | None,
    memory_budget: int,
    **sizes: Any,
) -> None:
    """Give the dense checkpoint SRC memory layers, beside its FFNs or in their place; writes OUT."""
    own = {"text": text, **_own_options(method, sizes)} if recipe is None else _recipe_options(recipe, sizes)
    method = own.pop("method", method)
    run_stage(
        "upcycle",
        common,
        lambda progress: pipeline.upcycle(
            common.src,
            common.out,
            method=method,
            overwrite=common.overwrite,
            copy=common.copy,
            jobs=jobs,
            memory_budget=memory_budget,
            progress=progress,
            **own,
        ),
        _identity_summary if method == "identity" else _neuron_summary,
        "heal {out} {beside}",
    )


def _recipe_options(recipe: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The options of the recipe's stage; InputError where one is given beside it, for the two may contradict."""
    context = click.get_current_context()
    for name in ("method", "text", *sizes):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag}: given beside --recipe, which says it all; leave it out, or edit a copy of {recipe}"
            )
    return upcycle_options(recipe)


def _own_options(method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The options of the method; InputError where one of another method was given."""
    own = asdict(METHODS[method])
    for name, options in METHODS.items():
        for field, default in asdict(options).items():
            if field not in own and sizes[field] != default:
                raise InputError(f"--{field.replace('_', '-')}: an option of --method {name}, not of {method}")
    return {field: sizes[field] for field in own}


def _identity_summary(result: dict[str, Any]) -> list[str]:
    paths = ", ".join(result["memory_layers"])
    return [
        f"{counted(len(result['memory_layers']), 'memory layer')}, read:write {paths}",
        f"{result['parameters_total']:,} parameters, {result['parameters_table']:,} of them in tables, "
        f"{result['parameters_active']:,} active a token",
        f"preserving: {result['preserving']}",
    ]


def _neuron_summary(result: dict[str, Any]) -> list[str]:
    blocks = [block for block in result["blocks"] if block["top_m"]]
    errors = [block["relative_error"] for block in blocks] or [0.0]
    others = ", ".join(f"{name} {number(one['perplexity_ratio'])}x" for name, one in result["baselines"].items())
    return [
        f"{counted(len(blocks), 'FFN')} as memories; a token uses {result['active_fraction']:.1%} of the neurons and "
        f"reads {result['ffn_bytes_fraction']:.1%} of the FFNs' bytes",
        f"relative output error {number(min(errors))} to {number(max(errors))} a block on held-out text",
        f"held-out perplexity {number(result['perplexity_source'], 4)} -> {number(result['perplexity'], 4)} "
        f"({number(result['perplexity_ratio'], 4)}x), KL {number(result['kl'])} nats a token, before any training",
        f"baselines that read as much: {others}",
    ]
