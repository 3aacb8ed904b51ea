"""Peak memory of convert and fold in processes of their own: under the budget, which lies under the table's size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ultramem_deploy
from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.checkpoint import Stage, TensorTask
from ultramem_deploy.checkpoint.provenance import SourceRecord
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.pipeline import convert, fold
from ultramem_deploy.spec import ModelSpec, TableSpec

MIB = 1 << 20
BUDGET = 192 * MIB
RUN = r"""
import json, re, sys
from pathlib import Path
from ultramem_deploy import pipeline
verb, source, out, budget, options = sys.argv[1:]
getattr(pipeline, verb)(source, out, memory_budget=int(budget), **json.loads(options))
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def wide(rows: int) -> ModelSpec:
    """A layer of `rows` rows of 1024 numbers, 4 blocks."""
    side = int((4 * rows) ** 0.5)
    dense = b.decoder(hidden_size=64, intermediate_size=16, num_layers=2)
    return ModelSpec(dense, (b.ultramem_v1(row_keys=side, col_keys=side, slots=rows),), {"t": TableSpec(rows, 1024)})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 1 GiB in float32, written in chunks; it expands to 256 MiB in bfloat16."""
    spec = wide(512 * 512)
    directory = tmp_path_factory.mktemp("budget") / "model"
    small = b.random_tensors(replace(spec, tables={"t": TableSpec(512 * 512, 2)}))
    tasks = [TensorTask.of(n, small[n]) for n in tensor_layout(spec) if small[n].shape == tensor_layout(spec)[n].shape]
    made = {task.name for task in tasks}
    for name, tensor in tensor_layout(spec).items():
        if name not in made:
            tasks.append(_random(name, tensor.shape))
    with Stage(directory, "random", SourceRecord("random", "file", {}, "0"), {}) as stage:
        stage.write_tensors("all", tasks)
        stage.write_json("config.json", spec.to_config())
    return directory


def _random(name: str, shape: tuple[int, ...]) -> TensorTask:
    def rows(start: int, stop: int) -> np.ndarray:
        return np.random.default_rng(start).standard_normal((stop - start, *shape[1:]), dtype=np.float32) * 0.1

    return TensorTask(name, "float32", shape, rows)


@pytest.mark.parametrize(
    ("verb", "options"), [("convert", '{"dtype": "bfloat16"}'), ("fold", '{"mode": "expand", "dtype": "bfloat16"}')]
)
def test_peak_memory_stays_within_the_budget(source: Path, tmp_path: Path, verb: str, options: str) -> None:
    root = Path(ultramem_deploy.__file__).parents[1]
    command = [sys.executable, "-c", RUN, verb, str(source), str(tmp_path / "out"), str(BUDGET), options]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    peak = int(result.stdout)
    assert peak < BUDGET + 500 * MIB < 1 << 30, f"{peak / MIB:.0f} MiB"


def test_the_budget_never_changes_a_byte(written: Written, tmp_path: Path) -> None:
    source = written(wide(64 * 64))
    for name, budget in (("tight", "60MiB"), ("ample", "2GiB")):
        fold(source, tmp_path / name, memory_budget=budget, jobs=3)
        convert(source, tmp_path / f"{name}-converted", dtype="bfloat16", memory_budget=budget, jobs=3)
    for suffix in ("", "-converted"):
        for file in (tmp_path / f"tight{suffix}").iterdir():
            assert file.read_bytes() == (tmp_path / f"ample{suffix}" / file.name).read_bytes(), file.name


def test_a_disk_too_small_is_refused_before_any_work(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    source = written(wide(64 * 64))
    monkeypatch.setattr("ultramem_deploy.checkpoint.files.shutil.disk_usage", lambda path: usage(1, 0, 1 << 20))
    with pytest.raises(
        InputError, match=r"the tensors of 'fold' need \d+ bytes.*or choose --mode auto, shuffle or keys"
    ):
        fold(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"the tensors of 'convert' need .* or choose a narrower --dtype"):
        convert(source, tmp_path / "out2", dtype="float16")
    assert not list(tmp_path.glob("*.partial/*.safetensors"))
