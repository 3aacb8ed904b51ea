"""Every verb on tiny models: what it makes and what it prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import SIZES, TRAINING, Chain, Invoke
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.heal import stage as heal_stage
from ultramem_deploy.converters.upcycle import stage
from ultramem_deploy.spec import ModelSpec

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def test_every_stage_prints_one_json_object_with_its_receipt(chain: Chain) -> None:
    for verb, printed in chain.printed.items():
        assert printed["stage"] == verb and printed["output"] == str(chain.paths[verb])
    assert chain.printed["convert"]["family"] == "llama"
    assert chain.printed["upcycle"]["memory_layers"] == ["0:1"]
    assert len(chain.printed["heal"]["losses"]) == 3
    assert chain.printed["fold"]["max_relative_error"] < 1e-4
    assert chain.printed["export"]["target"] == "ort"


def test_options_reach_the_stage(chain: Chain) -> None:
    (layer,) = ModelSpec.load(chain.paths["upcycle"]).memory
    assert (layer.slots, layer.key_width, layer.top_m, layer.heads, layer.blocks) == (64, 4, 4, 2, 4)
    (folded,) = ModelSpec.load(chain.paths["fold"]).memory
    assert folded.folded


@pytest.mark.parametrize("verb, said", [
    ("convert", "llama, 21 tensors"), ("upcycle", "1 memory layer, read:write 0:1"), ("heal", "held-out perplexity"),
    ("fold", "function preserved"), ("export", "model.onnx for ort"),
])  # fmt: skip
def test_a_second_run_says_what_is_there_and_what_comes_next(
    um: Invoke, chain: Chain, text: Path, verb: str, said: str
) -> None:
    verbs = list(chain.paths)
    before = chain.paths[verbs[verbs.index(verb) - 1]]
    options = {"upcycle": SIZES, "heal": ["--text", text, *TRAINING]}
    result = um(verb, before, chain.paths[verb], *options.get(verb, []))
    assert result.exit_code == 0
    assert said in result.stdout
    assert "\nnext: ultramem-deploy " in result.stdout


def test_copies_are_not_called_links(um: Invoke, chain: Chain, tmp_path: Path) -> None:
    assert "1 source file linked" in um("convert", chain.paths["source"], tmp_path / "linked").stdout
    assert "1 source file copied" in um("convert", chain.paths["source"], tmp_path / "copied", "--copy").stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_work_that_is_thrown_away_is_told(
    um: Invoke, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["upcycle", chain.paths["convert"], tmp_path / "out", *SIZES, *["--json"] * as_json]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_receipt", interrupted)
        assert um(*command).exit_code == 130
    result = um(*command, "--seed", 1)
    assert result.exit_code == 0
    assert "thrown away: the options (seed) changed" in result.stderr


def test_a_resumed_training_says_so(
    um: Invoke, chain: Chain, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["heal", chain.paths["upcycle"], tmp_path / "out", "--text", text, *TRAINING]
    with monkeypatch.context() as patch:
        patch.setattr(heal_stage, "SAVE_EVERY", 1)
        patch.setattr(heal_stage, "_write", interrupted)
        assert um(*command).exit_code == 130
    assert "resumed at step 3" in um(*command).stdout
    assert "resumed at step" not in um(*command).stdout


def test_healing_prints_its_curve(um: Invoke, chain: Chain, text: Path, tmp_path: Path) -> None:
    options = [
        "--distill",
        chain.paths["source"],
        "--retain",
        text,
        "--eval-every",
        1,
        "--plot",
        tmp_path / "curve.png",
    ]
    result = um("heal", chain.paths["upcycle"], tmp_path / "out", "--text", text, *TRAINING, *options)
    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines()[3:-1]]
    assert table[0] == ["step", "tokens", "perplexity", "retained"]
    assert [row[0] for row in table[1:]] == ["0", "1", "2", "3"]
    assert (tmp_path / "curve.png").is_file()


def test_the_next_command_runs_as_printed(um: Invoke, chain: Chain, tmp_path: Path) -> None:
    first = um("convert", chain.paths["source"], tmp_path / "a model")
    command = first.stdout.splitlines()[-1].removeprefix("next: ultramem-deploy ")
    assert f"'{tmp_path / 'a model'}'" in command
    result = um(*shlex.split(command), *SIZES)
    assert result.exit_code == 0, result.output


def test_overwrite_replaces_and_copy_copies(um: Invoke, chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert um("convert", chain.paths["source"], out).exit_code == 0
    refused = um("convert", chain.paths["source"], out, "--dtype", "bfloat16")
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert um("convert", chain.paths["source"], out, "--dtype", "bfloat16", "--overwrite").exit_code == 0
    copied = tmp_path / "copied"
    assert um("convert", chain.paths["source"], copied, "--copy").exit_code == 0
    assert (copied / "model.safetensors").stat().st_nlink == 1


def test_verify_passes_and_reports(um: Invoke, chain: Chain, text: Path) -> None:
    arguments = ("verify", chain.paths["heal"], chain.paths["fold"], "--text", text, "--tokens", 40)
    report = um(*arguments)
    assert report.exit_code == 0 and "passed" in report.stdout and report.stderr == ""
    result = json.loads(um(*arguments, "--json").stdout)
    assert result["passed"] and result["tokens"] == 40
    assert {"max_abs_logit_error", "mean_kl", "top1_agreement", "index_agreement", "worst"} <= result.keys()


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_fails_with_the_report_first_and_one_line_on_stderr(
    um: Invoke, chain: Chain, text: Path, as_json: bool
) -> None:
    arguments = ["verify", chain.paths["convert"], chain.paths["heal"], "--text", text, "--tokens", 40, "--max-abs", 0]
    result = um(*arguments, *["--json"] * as_json)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: verify: heal differs from convert") and result.stderr.count("\n") == 1
    if as_json:
        assert json.loads(result.stdout)["passed"] is False
    else:
        assert "FAILED" in result.stdout


@pytest.mark.parametrize("model, runtime", [("heal", None), ("export", "ort"), ("export", "ort-bodies")])
def test_generate_streams_what_it_returns(um: Invoke, chain: Chain, model: str, runtime: str | None) -> None:
    options = ["--prompt", "abc def", "--max-new-tokens", 6] + (["--runtime", runtime] if runtime else [])
    shown = um("generate", chain.paths[model], *options)
    assert shown.exit_code == 0, shown.output
    result = json.loads(um("generate", chain.paths[model], *options, "--json").stdout)
    assert shown.stdout == result["text"] + "\n"
    assert "tokens/s" in shown.stderr
    assert 0 < len(result["ids"]) <= 6


def test_inspect_shows_the_memory_layers(um: Invoke, chain: Chain) -> None:
    shown = um("inspect", chain.paths["export"])
    assert shown.exit_code == 0
    for part in ("ultramem (from llama)", "convert → upcycle → heal → fold → export", "0:1", "opsets"):
        assert part in shown.stdout


def test_convert_to_the_official_layout_and_back(um: Invoke, tmp_path: Path) -> None:
    source = GOLDEN / "v1-layernorm-untied-full"
    there, back, again = tmp_path / "canonical", tmp_path / "official", tmp_path / "again"
    for arguments in ((source, there), (there, back, "--to", "olmo-ultramem"), (back, again)):
        result = um("convert", *arguments)
        assert result.exit_code == 0, result.stderr
    assert (back / "model.pt").is_file() and (back / "config.yaml").is_file()
    one, two = Checkpoint.open(there), Checkpoint.open(again)
    assert {n: one.array(n).tobytes() for n in one.tensors} == {n: two.array(n).tobytes() for n in two.tensors}
    folded = tmp_path / "folded"
    assert um("fold", there, folded).exit_code == 0
    result = um("convert", folded, tmp_path / "no", "--to", "olmo-ultramem")
    assert result.exit_code == 2 and "folded" in result.stderr and "Traceback" not in result.stderr


def test_quantize_tells_errors_and_perplexity(um: Invoke, chain: Chain, text: Path, tmp_path: Path) -> None:
    source, out = chain.paths["heal"], tmp_path / "out"
    result = um("quantize", source, out, "--tables", "int4", "--text", text)
    assert result.exit_code == 0, result.output
    for part in (
        "tables.",
        "int4, relative RMS error 0.",
        "worst row",
        f"tokens of {text.name}",
        "next: ultramem-deploy",
    ):
        assert part in result.stdout
    printed = json.loads(um("quantize", source, out, "--tables", "int4", "--text", text, "--json").stdout)
    assert printed["stage"] == "quantize" and printed["up_to_date"] and printed["perplexity_after"] > 0
    assert "tolerance" in um("verify", source, out).stdout
    assert "--tables" in um("quantize", source, out).stderr
