"""SIGKILL at random moments of convert and fold: the same command then finishes, tensors as if nothing had happened.

A handful of kills; ULTRAMEM_KILL_ROUNDS sets the rounds of two kills a stage (`make test-long`: 25, 50 kills a stage).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import ultramem_deploy
from tests import builders as b
from tests.converters.importers.official_cases import make_config, write_official
from tests.test_memory_budget import wide
from ultramem_deploy.checkpoint import Checkpoint, read_provenance

ROUNDS = int(os.environ.get("ULTRAMEM_KILL_ROUNDS", "1"))
ROOT = Path(ultramem_deploy.__file__).parents[1]
VERBS = {
    "convert": ["--dtype", "bfloat16"],
    "fold": ["--mode", "expand"],
    "fold in order": ["--mode", "shuffle"],
}
KILLS = 2


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing killed: its tensors' hashes, and how long it took from its first file to its end."""

    source: Path
    made: Path
    tensors: dict[str, str]
    seconds: float


def digests(directory: Path) -> dict[str, str]:
    checkpoint = Checkpoint.open(directory)
    return {name: hashlib.sha256(checkpoint.array(name).tobytes()).hexdigest() for name in checkpoint.tensors}


# Files are noted every 16 MiB, not every 256: these models have smaller ones.
SMALL_STEPS = """
from ultramem_deploy.checkpoint import journal, shard_file
journal.JOURNAL_BYTES, shard_file.DIRECT_BYTES = 16 << 20, 0
from ultramem_deploy.cli import main
main()
"""


def command(verb: str, source: Path, out: Path, executor: str = "local") -> list[str]:
    options = [*VERBS[verb], "--executor", executor, "--quiet", "--json"]
    arguments = [verb.split()[0], str(source), str(out), *options]
    return [sys.executable, "-c", SMALL_STEPS, *arguments]


def begin(arguments: Sequence[str], out: Path) -> subprocess.Popen[str]:
    """Start the command and wait until it has touched the disk, or has ended."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    state = out.with_name(f"{out.name}.partial") / "shards.json"
    before = state.stat().st_ino if state.exists() else None
    while process.poll() is None and (not state.exists() or state.stat().st_ino == before):
        time.sleep(0.005)
    return process


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    folder = tmp_path_factory.mktemp("whole")
    one_block = wide(256 * 256)
    layer = b.ultramem_v1(row_keys=256, col_keys=256, slots=65536, blocks=1)
    in_order = b.ModelSpec(one_block.decoder, (layer,), one_block.tables)
    sources = {
        "convert": write_official(folder / "official", make_config(mem_knum=128, mem_vdim=512, n_layers=2)),
        "fold": b.write_checkpoint(folder / "blocks", wide(128 * 128)),
        "fold in order": b.write_checkpoint(folder / "one block", in_order),
    }
    found = {}
    for verb, source in sources.items():
        process = begin(command(verb, source, folder / verb), folder / verb)
        start = time.monotonic()
        finish(process)
        found[verb] = Undisturbed(source, folder / verb, digests(folder / verb), time.monotonic() - start)
    return found


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_random_and_run_again(
    verb: str, round_: int, undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    whole, chance = undisturbed[verb], random.Random(f"{verb} {round_}")
    out = tmp_path / "out"
    for _ in range(KILLS):
        process = begin(command(verb, whole.source, out), out)
        time.sleep(chance.uniform(0, 1) * whole.seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert not out.exists() or read_provenance(out) is not None, "half-written under the final name"
    finish(begin(command(verb, whole.source, out), out))
    assert digests(out) == whole.tensors
    assert not (tmp_path / "out.partial").exists()
    json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("verb", VERBS)
def test_a_large_file_is_continued_where_it_was_killed(
    verb: str, undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    whole, out = undisturbed[verb], tmp_path / "out"
    process = begin(command(verb, whole.source, out), out)
    journals = out.with_name("out.partial")
    while process.poll() is None and not any(file.stat().st_size for file in journals.glob("*.journal")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not out.exists(), "it was killed in the middle of a file"
    result = subprocess.run(
        command(verb, whole.source, out, "processes"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert sum(json.loads(result.stdout)["continued"].values()) >= 16 << 20
    assert digests(out) == whole.tensors
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in whole.made.iterdir())
