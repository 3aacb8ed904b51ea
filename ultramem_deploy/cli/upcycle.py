"""`upcycle SRC OUT`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import pipeline
from ..converters.upcycle.expert_options import ExpertOptions
from ..converters.upcycle.identity_options import IdentityOptions
from ..converters.upcycle.neuron_options import NeuronOptions
from ..cookbook.files import upcycle_options
from ..errors import InputError
from .options import EXISTING, StageOptions, jobs_option, memory_budget_option, method_options, stage_options, verb
from .output import counted, number, run_stage

METHODS: dict[str, type[Any]] = {"identity": IdentityOptions, "neurons": NeuronOptions, "experts": ExpertOptions}


@verb("upcycle", "canonical upcycled --method neurons --text corpus.txt --active 0.5")
@click.option("--method", type=click.Choice(list(METHODS)), default="identity", show_default=True,
              help="identity: memory layers beside the FFNs, outputs bit-identical until they are trained. neurons: "
              "the FFNs' neurons become memory slots, of which a token retrieves a fraction. experts: a mixture's "
              "experts become rows, their neurons slots.")  # fmt: skip
@click.option("--recipe", help="Instead of --method and its options: what the upcycle stage of a recipe says.")
@click.option(
    "--text", type=EXISTING, help="neurons/experts: UTF-8 text to calibrate on. Default: the Python reference."
)
@method_options(METHODS)
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
    """Give the checkpoint SRC memory layers, beside its FFNs or in their place; writes OUT."""
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
        SUMMARIES[method],
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
    """The options given, all of them the method's; InputError where one of another method was given."""
    own = {field.name for field in fields(METHODS[method])}
    given = {name: value for name, value in sizes.items() if value is not None}
    for name in given:
        if name not in own:
            others = [other for other, kind in METHODS.items() if name in {field.name for field in fields(kind)}]
            raise InputError(f"--{name.replace('_', '-')}: an option of --method {'/'.join(others)}, not of {method}")
    return given


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


def _expert_summary(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{counted(len(result['memory_layers']), 'mixture')} of experts as memories; a token uses "
        f"{result['active_neurons']:,} of its experts' {result['active_neurons_source']:,} neurons",
        f"preserving: {result['preserving']}",
    ]
    if "perplexity" not in result:
        return [*lines, "not measured: the model has no tokenizer to read text with"]
    dead = sum(block["dead_experts"] for block in result["blocks"])
    share = max(block["largest_expert_share"] for block in result["blocks"])
    lines += [
        f"experts: {dead} unused on the calibration text, the busiest takes {share:.1%} of its block's choices",
        f"held-out perplexity {number(result['perplexity_source'], 4)} -> {number(result['perplexity'], 4)} "
        f"({number(result['perplexity_ratio'], 4)}x), KL {number(result['kl'])} nats a token, before any training",
    ]
    others = [f"{name} {number(one['perplexity_ratio'])}x" for name, one in result["baselines"].items()]
    return [*lines, f"for comparison: {', '.join(others)}"] if others else lines


SUMMARIES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "identity": _identity_summary,
    "neurons": _neuron_summary,
    "experts": _expert_summary,
}
