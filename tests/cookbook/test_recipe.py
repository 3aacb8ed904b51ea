"""Recipes as they are read: every problem at once, each with what to do; options are those of the verbs."""

from __future__ import annotations

import errno
import json
import os
from inspect import signature
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests import builders
from ultramem_deploy import pipeline
from ultramem_deploy.cli import main
from ultramem_deploy.converters.upcycle.stage import METHODS
from ultramem_deploy.cookbook import files
from ultramem_deploy.cookbook.options import STAGES, UPCYCLE
from ultramem_deploy.cookbook.recipe import parse
from ultramem_deploy.errors import ConfigError, InputError
from ultramem_deploy.spec import ModelSpec

MACHINE = {"src", "out", "candidate", "overwrite", "copy", "jobs", "memory_budget", "executor", "progress", "check"}


def problems(stages: Any, settings: dict[str, Any] | None = None, **document: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse({"description": "x", "stages": stages} | document, "r", "r.yaml", settings)
    return caught.value.problems


@pytest.mark.parametrize("stage", STAGES)
def test_options_are_the_parameters_of_the_verbs(stage: str) -> None:
    """`convert --to` makes no checkpoint that another stage reads; method options lie in **parameters."""
    parameters = signature(getattr(pipeline, stage)).parameters.values()
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - MACHINE - {"to"}
    kinds = UPCYCLE.values() if stage == "upcycle" else [STAGES[stage]]
    held = {name for kind in kinds for name in kind.model_fields}
    assert held >= named if stage in ("upcycle", "heal") else held == named
    for p in parameters:
        if p.name in named and p.default is not p.empty and stage != "upcycle":
            assert STAGES[stage].model_fields[p.name].default == p.default


@pytest.mark.parametrize(
    ("stage", "option"),
    [("convert", "dtype"), ("fold", "mode"), ("fold", "dtype"), ("quantize", "tables"), ("quantize", "dense")],
)
def test_choices_are_those_of_the_verbs(stage: str, option: str) -> None:
    verb = main.get_command(click.Context(main), stage)
    (flag,) = [one for one in (verb.params if verb else ()) if one.name == option]
    assert isinstance(flag.type, click.Choice)
    told = STAGES[stage].model_json_schema()["properties"][option]
    held = next(kind["enum"] for kind in [told, *told.get("anyOf", ())] if "enum" in kind)
    assert held == list(flag.type.choices)


def test_every_method_can_be_named() -> None:
    assert set(UPCYCLE) == set(METHODS)


def test_every_problem_is_told_at_once_with_the_nearest_name() -> None:
    found = problems(
        [
            {"convert": {"dtyp": "keep", "dtype": "int3"}},
            "foldd",
            {"upcycle": {"method": "neuron"}},
            {"heal": {"step": 3, "lr": "high", "steps": 2.5}},
            {"export": ["ort"]},
        ],
        descripton="y",
    )
    text = "\n".join(found)
    for said in (
        "unknown 'descripton'; did you mean 'description'?",
        "convert: unknown 'dtyp'; did you mean 'dtype'?",
        "convert.dtype: expected 'keep', 'float32', 'bfloat16' or 'float16', found 'int3'",
        "stages[1]: unknown 'foldd'; did you mean 'fold'?",
        "upcycle.method: unknown 'neuron'; did you mean 'neurons'?",
        "heal: unknown 'step'; did you mean 'steps'?",
        "heal.lr: expected a valid number, found 'high'",
        "heal.steps: expected a valid integer, found 2.5",
        "export: expected options such as {key: value}, found ['ort']",
    ):
        assert said in text
    assert len(found) == 9


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (["fold", "convert"], "convert: must be the first stage"),
        (["export", "fold"], "fold: reads a checkpoint, found an exported model; put it elsewhere"),
        (["convert", "bundle"], "bundle: reads an exported model, found a checkpoint; put it elsewhere"),
        (["verify", "fold"], "verify: nothing was made before it; put it after a stage"),
        ([{"fold": {"mode": 3}}, {"verify": {"reference": "fold"}}], "fold.mode: expected 'expand',"),
        (["fold", {"verify": {"reference": "flod"}}], "verify: reference: unknown 'flod'; did you mean 'fold'?"),
        ([], "stages: expected a list of stages such as '- convert: {dtype: keep}'"),
        ([{"upcycle": {"method": "identity", "active": 0.5}}], "upcycle: unknown 'active'; expected one of"),
        ([{"upcycle": {"method": ["identity"]}}], "upcycle.method: unknown ['identity']"),
        (["export", {"bundle": {"runtime": "tensorrt"}}], "bundle.runtime: expected 'onnxruntime', found 'tensorrt'"),
        ([{1: None}], "stages[0]: unknown 1; expected one of convert"),
    ],
)
def test_stages_stand_where_they_can_run(stages: Any, said: str) -> None:
    (problem,) = problems(stages)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"convert": {"family": "gpt9"}}, "convert.family: expected one of ultramem, llama"),
        ({"upcycle": {"knum": 0}}, "upcycle.knum: must be positive, found 0"),
        ({"upcycle": {"value_width": 7}}, "upcycle.value_width: must be a multiple of the 2 cores, found 7"),
        ({"upcycle": {"paths": "3:1"}}, "upcycle.paths: 3:1: expected increasing, non-overlapping blocks"),
        ({"upcycle": {"paths": "a"}}, "upcycle.paths: expected read:write/read:write/"),
        ({"upcycle": {"sparse_parameters": -1.0}}, "upcycle.sparse_parameters: expected a positive number, found -1.0"),
        ({"upcycle": {"method": "neurons", "active": 1.5}}, "upcycle.active: expected a fraction above 0, at most 1"),
        ({"upcycle": {"method": "neurons", "shared": 0.5}}, "upcycle.shared: expected a fraction below --active (0.5)"),
        ({"upcycle": {"method": "experts", "seed": -1}}, "upcycle.seed: must not be negative, found -1"),
        ({"heal": {"steps": 0}}, "heal.steps: must be positive, below 1e+30, found 0"),
        ({"heal": {"lr": -1.0}}, "heal.lr: expected 0..1e+30, found -1.0"),
        ({"heal": {"length": 1}}, "heal.length: expected at least 2, found 1"),
        ({"heal": {"loss": "kl"}}, "heal.loss: kl needs the model to compare with: give it by --distill"),
        ({"heal": {"retain": "a.txt"}}, "heal.retain: needs the model to compare with: give it by --distill"),
        ({"fold": {"batch": 4}}, "fold.batch: only --mode auto chooses by the batch, found --mode expand"),
        ({"fold": {"mode": "auto", "batch": [1, 0]}}, "fold.batch: expected positive numbers, found 1, 0"),
        ({"fold": {"order": "frequency", "mode": "keys"}}, "fold.order: a fold of its own"),
        ({"fold": {"text": "a.txt"}}, "fold.text: only --order frequency reads it"),
        ({"quantize": {}}, "quantize.tables: nothing to do: give --tables int8"),
    ],
)
def test_values_out_of_range_are_told_before_any_work(stage: Any, said: str) -> None:
    (problem,) = problems([stage])
    assert problem.startswith(said)


@pytest.mark.parametrize(("option", "value"), [("tokens", 1), ("max_abs", -1.0), ("kl", -0.5)])
def test_limits_that_nothing_meets_are_told_too(option: str, value: float) -> None:
    (problem,) = problems(["fold", {"verify": {option: value}}])
    assert problem.startswith(f"verify.{option}: ") and problem.rpartition("found ")[2].startswith(str(value))


def test_a_setting_out_of_range_is_told_too() -> None:
    assert problems(["fold", "heal"], {"heal.patience": -1}) == ["heal.patience: must not be negative, found -1"]


def test_a_stage_may_occur_twice() -> None:
    document = {
        "description": "x",
        "stages": ["fold", {"fold": {"order": "frequency"}}, {"verify": {"reference": "fold"}}],
    }
    recipe = parse(document, "r", "r.yaml")
    assert [step.name for step in recipe.steps] == ["fold", "fold-2", "verify"]
    assert recipe.steps[1].options.given() == {"order": "frequency"}


def test_settings_replace_options_and_are_checked_alike() -> None:
    document = {"description": "x", "stages": [{"heal": {"steps": 5, "lr": 0.5}}]}
    recipe = parse(document, "r", "r.yaml", {"heal.steps": 7})
    assert recipe.steps[0].options.given() == {"steps": 7, "lr": 0.5}
    assert problems(["heal"], {"heal.step": 7}) == ["heal: unknown 'step'; did you mean 'steps'?"]
    assert "--set: unknown 'fold.mode'" in problems(["heal"], {"fold.mode": "expand"})[0]
    assert files.setting("heal.lr=1e-3") == ("heal.lr", 1e-3)
    for text in ("heal.lr", "lr=1e-3", "heal.=2"):
        with pytest.raises(InputError, match="expected STAGE.OPTION=VALUE"):
            files.setting(text)


def test_only_what_the_recipe_says_reaches_a_stage() -> None:
    recipe = parse({"description": "x", "stages": ["export"]}, "r", "r.yaml")
    assert recipe.steps[0].options.given() == {}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_ls_show_cp_and_validate(tmp_path: Path) -> None:
    listed = json.loads(run("recipes", "ls", "--json").stdout)["recipes"]
    assert [recipe["name"] for recipe in listed] == [file.stem for file in files.shipped()]
    plain = run("recipes", "ls").stdout
    for recipe in listed:
        name = recipe["name"]
        assert f"{name} " in plain
        shown = run("recipes", "show", name).stdout
        assert f"#   ultramem-deploy run {name} " in shown and " GiB" in shown.split("description:")[0]
        copied = tmp_path / f"{name}.yaml"
        assert run("recipes", "cp", name, tmp_path).exit_code == 0 and copied.read_text() == shown
        assert json.loads(run("recipes", "validate", copied, "--json").stdout)["valid"] is True
        assert json.loads(run("recipes", "show", copied, "--json").stdout) == recipe
    again = run("recipes", "cp", listed[0]["name"], tmp_path)
    assert again.exit_code == 2 and "exists; choose another name" in again.stderr


def test_a_copy_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file would be in the way of the next copy."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("recipes", "cp", "upcycle-identity", tmp_path / "mine.yaml")
    assert result.exit_code == 2 and "mine.yaml: cannot be written: No space left" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_bad_recipe_exits_with_2_and_tells_all(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("description: x\nstages:\n  - hael: {}\n  - fold: {mod: keys}\n")
    result = run("recipes", "validate", bad, "--json")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    told = json.loads(result.stdout)
    assert told["valid"] is False and len(told["problems"]) == 2
    twice = tmp_path / "twice.yaml"
    twice.write_text("description: x\nstages: []\nstages: []\n")
    assert "key 'stages' appears twice" in run("recipes", "validate", twice).stderr
    twice.write_bytes(b"# caf\xe9\n")
    assert run("recipes", "show", twice).stdout_bytes == twice.read_bytes()
    assert "cannot be read as YAML" in run("recipes", "validate", twice).stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [("upcycle-identiy", "did you mean 'upcycle-identity'?"), ("none.yaml", "none.yaml: no such recipe file")],
)
def test_an_unknown_recipe_is_named(name: str, said: str) -> None:
    result = run("recipes", "show", name)
    assert result.exit_code == 2 and said in result.stderr


def test_upcycle_reads_its_options_from_a_recipe(tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.PLAIN)
    recipe = tmp_path / "mine.yaml"
    sizes = "method: identity, paths: '0:1', knum: 8, key_width: 4, value_width: 8, top_m: 3, blocks: 4"
    recipe.write_text(f"description: x\nstages:\n  - convert\n  - upcycle: {{{sizes}}}\n  - export\n")
    assert run("upcycle", model, tmp_path / "out", "--recipe", recipe).exit_code == 0
    (layer,) = ModelSpec.load(tmp_path / "out").memory
    assert (layer.row_keys, layer.key_width, layer.top_m) == (16, 4, 3)
    beside = run("upcycle", model, tmp_path / "other", "--recipe", recipe, "--knum", "8")
    assert beside.exit_code == 2 and "--knum: given beside --recipe" in beside.stderr
    none = run("upcycle", model, tmp_path / "other", "--recipe", "official-ultramem")
    assert none.exit_code == 2 and "expected one upcycle stage, found 0" in none.stderr
