"""`plan` on the terminal."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Chain, Invoke
from tests.cli.test_errors import assert_one_line


@pytest.mark.parametrize(
    ("made", "stages"), [("source", ["convert", "export"]), ("heal", ["fold", "export"]), ("export", [])]
)
def test_the_chain_of_each_artifact(um: Invoke, chain: Chain, made: str, stages: list[str]) -> None:
    result = um("plan", chain.paths[made], "--batch", "1,64", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [stage["stage"] for stage in found["stages"]] == stages and found["batches"] == [1, 64]


def test_tables_and_reasons(um: Invoke, chain: Chain) -> None:
    result = um("plan", chain.paths["heal"])
    assert result.exit_code == 0 and result.stderr == ""
    for part in ("batch 512", "layer 0: ", "peak memory", "disk free", "profile", "\nfits\n"):
        assert part in result.stdout


def test_what_does_not_fit_is_an_answer(um: Invoke, chain: Chain) -> None:
    result = um("plan", chain.paths["heal"], "--stage", "fold", "--memory-budget", "1KB")
    assert result.exit_code == 0
    assert "fold does not fit: memory budget: " in result.stdout and "give --memory-budget 1MiB" in result.stdout


@pytest.mark.parametrize(("options", "said"), [
    (["--batch", "0"], "expected positive numbers such as 1,16,64, found '0'"),
    (["--batch", "1,x"], "expected positive numbers"),
    (["--memory-budget", "lots"], "--memory-budget: expected a size such as 2GiB"),
])  # fmt: skip
def test_bad_options(um: Invoke, chain: Chain, options: list[str], said: str) -> None:
    assert_one_line(um("plan", chain.paths["heal"], *options), said)


@pytest.mark.parametrize("verb", ["upcycle", "fold", "convert", "export"])
def test_a_budget_below_one_chunk_is_refused_at_the_start(um: Invoke, chain: Chain, verb: str) -> None:
    source = chain.paths["convert" if verb == "upcycle" else "heal"]
    out = source.parent / f"never-{verb}"
    dtype = ["--dtype", "bfloat16"] if verb == "convert" else []
    result = um(verb, source, out, *dtype, "--memory-budget", "100")
    assert_one_line(result, "--memory-budget: one chunk of tensor ")
    assert "; give --memory-budget " in result.stderr
    assert not list(source.parent.glob(f"never-{verb}*"))
