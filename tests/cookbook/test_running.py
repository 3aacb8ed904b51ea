"""Every recipe of this project on tiny models, and what running one again makes anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ultramem_deploy as um
from tests import builders
from tests.converters.importers.official_cases import make_config, write_official
from ultramem_deploy.cli import main
from ultramem_deploy.cookbook import files
from ultramem_deploy.errors import CheckFailed, InputError
from ultramem_deploy.spec import ExpertsSpec, RoutingSpec

# What makes a recipe tiny; everything else runs as it is written.
SIZES = {"knum": 8, "key_width": 4, "value_width": 8, "top_m": 4, "paths": "0:1"}
TRAINING = {"steps": 2, "batch": 2, "length": 16, "warmup": 1}
FITTING = {"calibration_tokens": 600, "held_out_tokens": 200}
UPCYCLED = {"identity": SIZES, "neurons": FITTING, "experts": FITTING}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return builders.write_text(tmp_path / "text.txt")


def tiny(recipe: str, text: Path) -> dict[str, Any]:
    """Settings under which a recipe takes a second."""
    settings: dict[str, Any] = {}
    for step in files.load(recipe).steps:
        options: dict[str, Any] = {}
        if step.stage == "upcycle":
            method = step.options.given()["method"]
            options = UPCYCLED[method] | ({} if method == "identity" else {"text": str(text)})
        elif step.stage == "heal":
            options = TRAINING | {"text": str(text)}
            options |= {"retain": str(text)} if "retain" in step.options.given() else {}
        elif step.stage == "verify":
            options = {"tokens": 40, "text": str(text)}
        elif step.stage == "quantize":
            options = {"text": str(text)}
        settings |= {f"{step.name}.{key}": value for key, value in options.items()}
    return settings


def source(recipe: str, directory: Path) -> Path:
    """A tiny model of the kind that a recipe reads."""
    if recipe == "official-ultramem":
        path = directory / "official"
        path.mkdir()
        write_official(path, make_config())
        builders.write_tokenizer(path, 60)
        return path
    return builders.write_checkpoint(directory / "model", SPECS[recipe], tokenizer=True)


MIXTURE = ExpertsSpec((0, 1), 6, 10, RoutingSpec(2))
SPECS = {
    "upcycle-experts": replace(builders.PLAIN, decoder=builders.decoder(experts=MIXTURE)),
    "upcycle-identity": builders.PLAIN,
    "upcycle-neurons": builders.PLAIN,
    "teach-text": builders.PLAIN,
    # MatMulNBits takes rows of whole blocks of 32.
    "quantised-serving": replace(builders.V1, decoder=builders.decoder(intermediate_size=64)),
}


@pytest.mark.parametrize("recipe", [file.stem for file in files.shipped()])
def test_every_recipe_runs(recipe: str, tmp_path: Path, text: Path) -> None:
    told = files.load(recipe)
    settings = tiny(recipe, text)
    result = um.run(recipe, source(recipe, tmp_path), tmp_path / "out", settings=settings)
    assert [row["name"] for row in result["stages"]] == [step.name for step in told.steps]
    for row in result["stages"]:
        assert Path(row["output"]).exists() and row["bytes"] > 0 and row["figure"] and row["seconds"] > 0
        assert not row["up_to_date"]
        if row["stage"] == "verify":
            assert row["receipt"]["passed"] and row["receipt"]["tokens"] == 40
    made = [row["name"] for row in result["stages"] if row["stage"] != "verify"]
    assert result["output"] == str(tmp_path / "out" / made[-1])
    assert um.generate(result["output"], prompt="the memory", max_new_tokens=2)["ids"]
    again = um.run(recipe, source_again(tmp_path), tmp_path / "out", settings=settings)
    assert all(row["up_to_date"] for row in again["stages"])
    assert [row["figure"] for row in again["stages"]] == [row["figure"] for row in result["stages"]]


def source_again(directory: Path) -> Path:
    return next(path for name in ("official", "model") if (path := directory / name).exists())


RECIPE = """
description: A test's.
stages:
  - fold: {mode: keys}
  - verify: {tokens: 40, text: TEXT}
  - fold: {mode: expand, dtype: float32}
  - verify: {reference: source, tokens: 40, text: TEXT}
"""


@pytest.fixture
def recipe(tmp_path: Path, text: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.replace("TEXT", str(text)))
    return path


def state(result: dict[str, Any]) -> dict[str, bool]:
    return {row["name"]: row["up_to_date"] for row in result["stages"]}


def test_what_changed_is_made_again_and_nothing_else(recipe: Path, tmp_path: Path, text: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    um.run(recipe, model, tmp_path / "out")
    settings = {"fold-2.mode": "shuffle", "fold-2.dtype": "keep"}
    with pytest.raises(InputError, match="use --overwrite"):
        um.run(recipe, model, tmp_path / "out", settings=settings)
    changed = um.run(recipe, model, tmp_path / "out", settings=settings, overwrite=True)
    assert state(changed) == {"fold": True, "verify": True, "fold-2": False, "verify-2": False}
    text.write_text(text.read_text() + "\f the table holds it.")
    assert state(um.run(recipe, model, tmp_path / "out", settings=settings))["verify"] is False


def test_a_killed_run_continues(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ultramem_deploy.pipeline.verify", killed)
        with pytest.raises(KeyboardInterrupt):
            um.run(recipe, model, tmp_path / "out")
    assert state(um.run(recipe, model, tmp_path / "out")) == {
        "fold": True, "verify": False, "fold-2": False, "verify-2": False,
    }  # fmt: skip


def test_a_failed_check_ends_the_run_and_is_not_remembered(recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    for _ in range(2):
        with pytest.raises(CheckFailed, match="logit"):
            um.run(recipe, model, tmp_path / "out", settings={"verify-2.max_abs": 0.0})
    assert not (tmp_path / "out" / "verify-2.json").exists()


def edited(**receipt: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: record | {"receipt": record["receipt"] | receipt}


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda record: [record],
    "no receipt": lambda record: {"made_of": record["made_of"]},
    "an empty receipt": lambda record: record | {"receipt": {}},
    "no number": edited(mean_kl="small"),
    "null": edited(max_abs_logit_error=None),
    "another number": edited(max_abs_logit_error=0.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_edited_record_is_measured_again(damage: str, recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    whole = um.run(recipe, model, tmp_path / "out")
    file = tmp_path / "out" / "verify.json"
    written = file.read_bytes()
    file.write_text(json.dumps(DAMAGES[damage](json.loads(written))))
    again = um.run(recipe, model, tmp_path / "out")
    assert state(again) == {"fold": True, "verify": False, "fold-2": True, "verify-2": True}
    assert again["stages"][1]["figure"] == whole["stages"][1]["figure"] and file.read_bytes() == written
    file.write_bytes(written[:-20])
    assert state(um.run(recipe, model, tmp_path / "out"))["verify"] is False


def test_an_edited_receipt_of_a_stage_is_one_line(recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    um.run(recipe, model, tmp_path / "out")
    file = tmp_path / "out" / "fold" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"receipt": {}}))
    result = CliRunner().invoke(main, ["run", str(recipe), str(model), str(tmp_path / "out")])
    assert result.exit_code == 2 and f"{file}: " in result.stderr
    assert "'receipt' is not what the stage wrote; the file is damaged: remove the directory" in result.stderr


def test_the_command_prints_a_table_or_json(recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    arguments = ["run", str(recipe), str(model), str(tmp_path / "out")]
    table = CliRunner().invoke(main, arguments)
    assert table.exit_code == 0, table.output
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["stage", "output", "seconds", "size", "result"]
    assert [line.split()[0] for line in lines[1:]] == ["fold", "verify", "fold-2", "verify-2", "run:"]
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert told["recipe"] == "mine" and len(told["stages"]) == 4 and told["stages"][0]["up_to_date"]


def test_what_cannot_work_is_told_before_the_first_stage(recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    gone = tmp_path / "gone.txt"
    for setting, said in {
        "verify-2.kl=-1.0": "verify-2.kl: expected 0 or more, found -1.0: nothing could pass",
        f"verify-2.text={gone}": f"verify-2.text: {gone}: no such file",
        f"verify-2.text={tmp_path}": f"verify-2.text: {tmp_path}: is a directory; expected a file",
        "fold-2.batch=[0]": "fold-2.batch: only --mode auto",
    }.items():
        result = CliRunner().invoke(main, ["run", str(recipe), str(model), str(tmp_path / "out"), "--set", setting])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert f"{recipe}: " in result.stderr and said in result.stderr
        assert not (tmp_path / "out").exists()


def test_an_error_of_a_stage_names_the_stage(recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    with pytest.raises(InputError, match=r"^fold-2: memory layer 0 has no key norm"):
        um.run(recipe, model, tmp_path / "out", settings={"fold-2.mode": "keys"})
    with pytest.raises(CheckFailed, match=r"^verify-2: (?!verify)"):
        um.run(recipe, model, tmp_path / "made", settings={"verify-2.max_abs": 0.0})


def test_recipes_compute_what_the_verbs_compute(recipe: Path, tmp_path: Path) -> None:
    model = builders.write_checkpoint(tmp_path / "model", builders.V1, tokenizer=True)
    result = um.run(recipe, model, tmp_path / "out")
    um.fold(model, tmp_path / "keys", mode="keys")
    um.fold(tmp_path / "keys", tmp_path / "expanded", mode="expand", dtype="float32")
    ids = torch.arange(20).view(2, 10)
    assert torch.equal(um.load(Path(result["output"]))(ids), um.load(tmp_path / "expanded")(ids))


def test_healing_may_learn_from_an_earlier_stage(tmp_path: Path, text: Path) -> None:
    """`distill` names a stage, the source, or a path: all three are the same model here."""
    model = builders.write_checkpoint(tmp_path / "model", builders.PLAIN, tokenizer=True)
    stages = [
        "convert",
        {"upcycle": {"method": "neurons", "active": 0.25, "text": str(text), **FITTING}},
        {"heal": {"text": str(text), "distill": "convert", **TRAINING}},
    ]
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"description": "A test's.", "stages": stages}))
    receipts = [
        um.run(mine, model, tmp_path / f"out-{index}", settings={"heal.distill": source})["stages"][-1]["receipt"]
        for index, source in enumerate(("convert", "source", str(model)))
    ]
    assert receipts[0] == receipts[1] == receipts[2]
    assert receipts[0]["losses"] and receipts[0]["regression_steps"] == 0, "a quarter of two steps rounds to none"
