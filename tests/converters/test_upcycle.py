"""Upcycling a dense model: nothing changes until the memory is trained, and the bytes depend on the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import builders as b
from tests.conftest import Written
from ultramem_deploy.checkpoint import Checkpoint, read_provenance
from ultramem_deploy.checkpoint.companions import COMPANIONS, companion_files
from ultramem_deploy.converters.upcycle import identity, stage
from ultramem_deploy.converters.upcycle.identity import (
    auto_paths,
    memory_tasks,
    parse_paths,
    random_task,
    rank_one,
    upcycled_spec,
)
from ultramem_deploy.converters.upcycle.identity_options import IdentityOptions
from ultramem_deploy.errors import InputError, UltraMemError
from ultramem_deploy.model import load
from ultramem_deploy.pipeline import export, upcycle
from ultramem_deploy.planning import parameter_counts
from ultramem_deploy.spec import ModelSpec

SIZES: dict[str, Any] = {"knum": 8, "key_width": 8, "value_width": 6, "top_m": 3}


def tensors(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(directory)
    return {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_the_same_bits(written: Written, tmp_path: Path, dtype: str) -> None:
    dense = written(b.PLAIN, "dense", dtype=dtype)
    upcycle(dense, tmp_path / "out", **SIZES)
    ids = torch.arange(40).view(2, 20)
    before, after = load(dense), load(tmp_path / "out")
    assert len(after.memory) > 0
    assert torch.equal(before(ids), after(ids))
    assert {tensor.dtype for tensor in after.state_dict().values()} == {getattr(torch, dtype), torch.int64}


def test_what_is_written(written: Written, tmp_path: Path) -> None:
    dense = written(b.PLAIN, "dense", tokenizer=True, max_shard_bytes=20_000)
    receipt = upcycle(dense, tmp_path / "out", paths="0:1", blocks=6, heads=3, **SIZES)
    layer = ModelSpec.load(tmp_path / "out").memory[0]
    assert (layer.read_block, layer.write_block, layer.heads, layer.top_m) == (0, 1, 3, 3)
    assert (layer.row_keys, layer.col_keys, layer.slots, layer.blocks) == (16, 24, 64, 6)
    found = tensors(tmp_path / "out")
    assert not found["memory.0.output.weight"].any()
    assert sorted(found["memory.0.shuffle"]) == list(range(6 * 64))
    assert not np.array_equal(found["memory.0.shuffle"], np.arange(6 * 64))
    core = found["memory.0.core"]
    assert core.min() >= 0 and core.max() < 1 and core.std() > 0.2
    u, v = rank_one(core.sum(0))
    np.testing.assert_array_equal(found["memory.0.u"], u)
    np.testing.assert_array_equal(found["memory.0.v"], v)
    assert found["tables.layer0.values"].std() == pytest.approx(0.02, rel=0.2)
    assert found["memory.0.row_keys"].std() == pytest.approx(8**-0.5, rel=0.1)
    assert receipt["memory_layers"] == ["0:1"] and receipt["up_to_date"] is False
    counts = parameter_counts(ModelSpec.load(tmp_path / "out"))
    assert {name: receipt[name] for name in counts} == counts
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (dense / "tokenizer.json").read_bytes()
    provenance = read_provenance(tmp_path / "out")
    assert provenance is not None and provenance["receipt"]["preserving"].startswith("exact")


def test_the_companions_travel_with_every_stage(written: Written, tmp_path: Path) -> None:
    dense = written(b.PLAIN, "dense", tokenizer=True)
    for name in COMPANIONS:
        if not (dense / name).exists():
            (dense / name).write_text(f'"{name}"')
    upcycle(dense, tmp_path / "upcycled", **SIZES)
    export(tmp_path / "upcycled", tmp_path / "bundle")
    for out in ("upcycled", "bundle"):
        assert {file.name for file in companion_files(tmp_path / out)} == set(COMPANIONS)


def test_dense_shards_are_linked_or_copied(written: Written, tmp_path: Path) -> None:
    dense = written(b.PLAIN, "dense", max_shard_bytes=20_000)
    shards = sorted(file.name for file in dense.glob("*.safetensors"))
    assert len(shards) > 2
    upcycle(dense, tmp_path / "linked", **SIZES)
    upcycle(dense, tmp_path / "copied", copy=True, **SIZES)
    for name in shards:
        assert (dense / name).samefile(tmp_path / "linked" / name)
        assert not (dense / name).samefile(tmp_path / "copied" / name)
        assert (dense / name).read_bytes() == (tmp_path / "copied" / name).read_bytes()


def test_bytes_depend_on_the_seed_alone(written: Written, tmp_path: Path) -> None:
    dense = written(b.PLAIN, "dense")
    made = {}
    for name, options in {"one": {"jobs": 1}, "four": {"jobs": 4}, "other": {"seed": 1}}.items():
        upcycle(dense, tmp_path / name, **SIZES, **options)
        made[name] = {f.name: f.read_bytes() for f in (tmp_path / name).glob("*.safetensors")}
    assert made["one"] == made["four"]
    one, other = tensors(tmp_path / "one"), tensors(tmp_path / "other")
    new = [name for name in one if not name.startswith(("model.", "lm_head."))]
    same = {name for name in new if np.array_equal(one[name], other[name])}
    assert {name.split(".", 2)[2] for name in same} == {"output.weight", "query_norm.weight", "key_norm.weight"}
    assert upcycle(dense, tmp_path / "one", **SIZES)["up_to_date"] is True


def test_random_rows_do_not_depend_on_the_chunks() -> None:
    task = random_task("t", (1000, 700), "float32", 0.5, seed=3)
    whole = task.rows(0, 1000)
    parts = [task.rows(start, min(start + 137, 1000)) for start in range(0, 1000, 137)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert abs(whole.mean()) < 0.01 and whole.std() == pytest.approx(0.5, rel=0.01)
    assert len(np.unique(whole)) > 0.9 * whole.size, "blocks of rows repeat one another"


def test_tensors_differ_from_layer_to_layer(written: Written, tmp_path: Path) -> None:
    upcycle(written(b.PLAIN, "dense"), tmp_path / "out", paths="0:0/1:1", **SIZES)
    found = tensors(tmp_path / "out")
    for name in ("row_keys", "query.weight", "core", "shuffle"):
        assert not np.array_equal(found[f"memory.0.{name}"], found[f"memory.1.{name}"]), name
    assert not np.array_equal(found["memory.0.row_keys"].reshape(-1), found["memory.0.col_keys"].reshape(-1))
    assert not np.array_equal(found["tables.layer0.values"], found["tables.layer1.values"])


def test_rank_one_is_the_leading_pair_with_a_positive_sum() -> None:
    rng = np.random.default_rng(0)
    for core in (rng.random((50, 2, 2)), rng.standard_normal((50, 3, 3))):
        u, v = rank_one(core)
        assert (u.sum(1) >= 0).all()
        for one, left, right in zip(core, u, v, strict=True):
            power = np.linalg.norm(one, 2)
            np.testing.assert_allclose(one @ right, power * left, atol=1e-5)
            np.testing.assert_allclose(one.T @ left, power * right, atol=1e-5)
    assert (rank_one(rng.random((50, 2, 2)))[1] >= 0).all()


PATHS = {"0:0": [(0, 0)], "1:3/4:4": [(1, 3), (4, 4)], "0:9": [(0, 9)]}
BAD_PATHS = ["", "1", "1:2:3", "a:b", "3:1", "0:1/1:2", "2:3/0:1", "0:10", "-1:0", "0:1/", "0:1,2:3"]


@pytest.mark.parametrize("text", PATHS)
def test_paths(text: str) -> None:
    assert parse_paths(text, 10) == PATHS[text]


@pytest.mark.parametrize("text", BAD_PATHS)
def test_bad_paths(text: str) -> None:
    with pytest.raises(InputError, match="--paths: "):
        parse_paths(text, 10)


@pytest.mark.parametrize("blocks", [*range(1, 40), 80])
def test_auto_paths_fit(blocks: int) -> None:
    pairs = auto_paths(blocks)
    assert 1 <= len(pairs) <= 3
    assert parse_paths("/".join(f"{a}:{b}" for a, b in pairs), blocks) == pairs
    assert pairs[0][0] >= blocks // 3, "healing would have to reach far back"


BAD_SIZES = {
    "knum": (0, "--knum: must be positive, found 0"),
    "key_width": (-1, "--key-width: must be positive"),
    "value_width": (7, "--value-width: must be a multiple of the 2 cores"),
    "top_m": (100, "top_m"),
    "heads": (0, "--heads: must be positive"),
    "blocks": (0, "--blocks: must be positive"),
    "seed": (-1, "--seed: must not be negative"),
    "paths": ("5:6", "--paths: 5:6"),
}


@pytest.mark.parametrize("option", BAD_SIZES)
def test_sizes_that_cannot_work(option: str) -> None:
    value, message = BAD_SIZES[option]
    options = IdentityOptions(**(SIZES | {option: value}))
    if option == "top_m":
        assert upcycled_spec(b.PLAIN, options).memory[0].top_m == 100, "64 of 16*16 candidates fit"
        options = IdentityOptions(**(SIZES | {option: 1000}))
    with pytest.raises(UltraMemError, match=message):
        upcycled_spec(b.PLAIN, options)


def test_sizes_that_no_machine_holds_are_refused_before_anything_is_written(written: Written, tmp_path: Path) -> None:
    dense = written(b.PLAIN, "dense")
    with pytest.raises(InputError, match=r"need \d+ bytes, \d+ are free.*--knum .* or --value-width"):
        upcycle(dense, tmp_path / "out", knum=100_000)
    assert not list(tmp_path.glob("out*"))


def test_a_shuffle_that_memory_cannot_hold_is_refused(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"2\.0 KiB while it is drawn, 1000 B .* --knum or --blocks"):
        upcycle(written(b.PLAIN, "dense"), tmp_path / "out", **SIZES)
    assert not list(tmp_path.glob("out*"))


def test_a_shuffle_is_drawn_when_it_is_written_and_freed_after(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = upcycled_spec(b.PLAIN, IdentityOptions(**(SIZES | {"paths": "0:0/1:1"})))
    drawn: list[str] = []
    real = identity._generator

    def counted(seed: int, name: str, block: int = 0) -> np.random.Generator:
        drawn.append(name)
        return real(seed, name, block)

    monkeypatch.setattr(identity, "_generator", counted)
    tasks = {task.name: task for task in memory_tasks(spec, "float32", 0)}
    assert not [name for name in drawn if "shuffle" in name]
    task = tasks["memory.1.shuffle"]
    for _ in range(2):
        parts = [task.rows(start, start + 64) for start in (64, 0, 192, 128)]
        assert all(part.base is None for part in parts), "a view would keep the whole"
        np.testing.assert_array_equal(
            np.concatenate(parts)[[*range(64, 128), *range(64), *range(192, 256), *range(128, 192)]],
            real(0, "memory.1.shuffle").permutation(256),
        )
    assert drawn.count("memory.1.shuffle") == 2, "freed with its last rows"


def test_refusals(written: Written, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already has 1 memory layers"):
        upcycle(written(b.V1, "v1"), tmp_path / "out", **SIZES)
    with pytest.raises(InputError, match="--method: expected one of identity, neurons, experts, found 'magic'"):
        upcycle(written(b.PLAIN, "dense"), tmp_path / "out", method="magic")
    with pytest.raises(InputError, match="unknown option 'size'"):
        upcycle(tmp_path / "dense", tmp_path / "out", size=3)
    assert not list(tmp_path.glob("out*"))
