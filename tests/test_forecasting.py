"""Plans of whole chains: what fits, what is short, from headers alone however large the tables are."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ultramem_deploy
from tests import builders as b
from tests.conftest import Written
from tests.test_import_time import imported
from ultramem_deploy import forecasting
from ultramem_deploy.errors import InputError
from ultramem_deploy.layout import tensor_layout
from ultramem_deploy.pipeline import plan
from ultramem_deploy.planning import profile as machine_profile
from ultramem_deploy.spec import ModelSpec, TableSpec

ROOT = Path(ultramem_deploy.__file__).parents[1]
GB = 10**9


@pytest.fixture(autouse=True)
def generic_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def large(layers: int = 6) -> ModelSpec:
    """The 1.6B model's memory: d 2048, knum 1792, D 1024, E 4, a table of 6.6 GB in bfloat16 a layer."""
    wide = b.decoder(hidden_size=2048, intermediate_size=8192, num_layers=32, vocab_size=50304)
    memory = tuple(
        b.ultramem_v1(read_block=4 * i, write_block=4 * i + 3, top_m=42, row_keys=3584, col_keys=3584, key_width=512,
                      table=f"layer{i}", slots=1792**2)
        for i in range(layers)
    )  # fmt: skip
    return ModelSpec(wide, memory, {f"layer{i}": TableSpec(1792**2, 1024) for i in range(layers)})


def write_headers(directory: Path, spec: ModelSpec, dtype: str = "BF16", shards: int = 1) -> int:
    """A checkpoint of the right headers and lengths whose files are holes; returns the bytes it claims."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(spec.to_config()))
    layout = tensor_layout(spec)
    names = list(layout)
    weight_map, total = {}, 0
    for shard in range(shards):
        held = names[shard::shards]
        file = f"model-{shard:05d}.safetensors" if shards > 1 else "model.safetensors"
        weight_map |= dict.fromkeys(held, file)
        total += _write_hole(directory / file, {name: layout[name].shape for name in held}, dtype)
    if shards > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def _write_hole(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> int:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        code, width = ("I64", 8) if name.endswith(".shuffle") else (dtype, {"BF16": 2, "F32": 4}[dtype])
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return end


PLAN_AND_COUNT = """
import sys
from pathlib import Path
from ultramem_deploy.cli import main
try:
    main(["plan", sys.argv[1], "--json"])
finally:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    print(counters["rchar"], file=sys.stderr)
"""


@pytest.mark.parametrize("shards", [1, 300])
def test_a_hundred_gigabytes_plan_from_headers_alone(tmp_path: Path, shards: int) -> None:
    spec = large(layers=7)
    assert write_headers(tmp_path / "model", spec, "F32", shards) > 100 * GB
    command = [sys.executable, "-c", PLAN_AND_COUNT, str(tmp_path / "model")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    # Python's own modules are most of what is read.
    assert int(result.stderr) < 64 << 20
    found = json.loads(result.stdout)
    assert len(found["layers"]) == 7 and [s["stage"] for s in found["stages"]] == ["fold", "export"]


def test_it_imports_nothing_heavy(tmp_path: Path, written: Written) -> None:
    model = written(b.V1)
    assert imported("plan", model, "--json") == set()
    assert imported("plan", model) <= {"rich"}


def test_fields_and_figures(written: Written) -> None:
    found = plan(written(b.V1), batch=(1, 16), memory_budget="1GiB")
    assert found["family"] == "ultramem" and found["source"] == "model"
    assert found["batches"] == [1, 16] and found["memory_budget_bytes"] == 1 << 30
    (layer,) = found["layers"]
    assert layer.keys() == {
        "layer", "choice", "rank_one_keys", "reason", "table_bytes_before", "table_bytes_after",
        "bytes_per_token_before",
        "bytes_per_token_after",
    }  # fmt: skip
    assert layer["bytes_per_token_before"].keys() == {"1", "16"}
    assert [stage["stage"] for stage in found["stages"]] == ["fold", "export"]
    assert found["fits"] and all(stage["fits"] and not stage["short"] for stage in found["stages"])
    assert found["profile"]["source"] == "generic" and json.dumps(found)


def test_chains(written: Written, tmp_path: Path) -> None:
    def stages(spec: ModelSpec, name: str) -> list[str]:
        return [stage["stage"] for stage in plan(written(spec, name))["stages"]]

    assert stages(b.PLAIN, "dense") == ["export"]
    assert stages(replace(b.EXPANDED, memory=(replace(b.EXPANDED.memory[0], key_norm=None),)), "folded") == ["export"]
    assert [s["stage"] for s in plan(written(b.V1, "v1"), stage="fold")["stages"]] == ["fold"]
    with pytest.raises(InputError, match="--stage fold: the model has no memory layers"):
        plan(tmp_path / "dense", stage="fold")
    with pytest.raises(InputError, match="quantize: --tables: the model has no memory layers"):
        plan(tmp_path / "dense", stage="quantize")
    with pytest.raises(InputError, match="--stage: expected one of .* found 'heal'"):
        plan(tmp_path / "dense", stage="heal")
    with pytest.raises(InputError, match="--batch: expected positive numbers"):
        plan(tmp_path / "dense", batch=0)


def test_a_full_disk_says_what_is_short_and_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_headers(tmp_path / "model", large())
    monkeypatch.setattr(forecasting, "free_disk", lambda path: 2 * GB)
    found = plan(tmp_path / "model", batch=1)
    fold = found["stages"][0]
    assert not found["fits"] and not fold["fits"] and fold["disk_needed_bytes"] > fold["disk_free_bytes"] == 2 * GB
    assert fold["short"][0].startswith("disk: ") and fold["advice"] == ["choose fold --mode keys"]
    assert {layer["choice"] for layer in found["layers"]} == {"shuffle"}
    assert all("left on the disk" in layer["reason"] for layer in found["layers"])


def test_a_small_budget_says_which_would_do(tmp_path: Path) -> None:
    write_headers(tmp_path / "model", large(1))
    found = plan(tmp_path / "model", memory_budget="20MB", stage="fold")
    (fold,) = found["stages"]
    assert not fold["fits"] and fold["short"][0].startswith("memory budget: ")
    advised = fold["advice"][0].split()[2]
    assert plan(tmp_path / "model", memory_budget=advised, stage="fold")["fits"]


def test_stages_share_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_headers(tmp_path / "model", large(1))
    monkeypatch.setattr(forecasting, "free_disk", lambda path: 500 * GB)
    monkeypatch.setattr(forecasting, "total_memory", lambda: 200 * GB)
    fold, export = plan(tmp_path / "model", batch=1)["stages"]
    assert fold["disk_needed_bytes"] > 105 * GB
    assert export["disk_free_bytes"] == fold["disk_free_bytes"] - fold["disk_needed_bytes"]


def test_calibration_is_kept_and_used(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(b.V1)
    found = plan(model, calibrate=True)
    assert found["profile"]["source"] == "measured"
    assert all(rate > 0 for name, rate in found["profile"].items() if name.endswith("_second"))
    assert machine_profile.profile_path().is_file() and not list(model.parent.glob("calibrate-*"))
    assert plan(model)["profile"] == found["profile"]
    monkeypatch.setattr(machine_profile, "this_machine", lambda: "another")
    assert plan(model)["profile"]["source"] == "generic"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source": 1}', "nonsense"])
def test_a_damaged_profile_counts_as_none(text: str) -> None:
    path = machine_profile.profile_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert machine_profile.load_profile() == machine_profile.GENERIC
