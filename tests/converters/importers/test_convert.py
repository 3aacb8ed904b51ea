"""Canonical checkpoints on disk: links, casts, companions, and sources that do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ultramem_deploy.checkpoint import Checkpoint, read_provenance
from ultramem_deploy.converters.importers import import_checkpoint, plan_import
from ultramem_deploy.errors import InputError
from ultramem_deploy.spec import ModelSpec

from .sources import family_config, llama_shapes, random_tensors, write_source

Make = Callable[..., Path]


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def test_unchanged_shards_share_their_inodes(llama: Make, tmp_path: Path) -> None:
    source, out = llama(shards=3), tmp_path / "out"
    summary = import_checkpoint(source, out)
    assert summary["linked"] == 3
    assert (summary["family"], summary["tensors"], summary["dtype"]) == ("llama", 21, "keep")
    assert [f.stat().st_ino for f in shards(out)] == [f.stat().st_ino for f in shards(source)]
    assert ModelSpec.load(out) == plan_import(source).spec
    receipt = read_provenance(out)
    assert receipt is not None and receipt["receipt"] == {
        "tensors": 21,
        "memory_layers": 0,
        "linked": 3,
        "copied": 0,
        "dtype": "keep",
        "warnings": [],
    }


def test_copy_shares_nothing(llama: Make, tmp_path: Path) -> None:
    source, out = llama(shards=2), tmp_path / "out"
    summary = import_checkpoint(source, out, copy=True)
    assert (summary["linked"], summary["copied"]) == (0, 2)
    again = import_checkpoint(source, out)
    assert again["up_to_date"] and (again["linked"], again["copied"]) == (0, 2), "what was done, not what would be"
    for ours, theirs in zip(shards(out), shards(source), strict=True):
        assert ours.stat().st_ino != theirs.stat().st_ino
        assert ours.read_bytes() == theirs.read_bytes()


def test_an_output_inside_the_source_is_refused(llama: Make, tmp_path: Path) -> None:
    source = llama(shards=1)
    with pytest.raises(InputError, match=r"sub: lies in the source .*, which must stay as it is"):
        import_checkpoint(source, source / "sub")
    assert not list(source.glob("sub*"))
    with pytest.raises(InputError, match=r"holds the source"):
        import_checkpoint(source, source)
    import_checkpoint(source, source.with_name("beside"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_rounds_once(llama: Make, tmp_path: Path, dtype: str) -> None:
    source, out = llama(shards=2), tmp_path / "out"
    summary = import_checkpoint(source, out, dtype=dtype)
    assert summary["linked"] == 0
    target = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(np.float16)
    before, after = Checkpoint.open(source), Checkpoint.open(out)
    assert set(before.tensors) == set(after.tensors)
    assert summary["bytes"] == sum(info.nbytes for info in after.tensors.values())
    for name in before.tensors:
        assert after.info(name).dtype == dtype
        expected = before.array(name).astype(target)
        assert np.array_equal(after.array(name).view(np.uint16), expected.view(np.uint16))


def test_a_cast_to_what_is_there_links(llama: Make, tmp_path: Path) -> None:
    assert import_checkpoint(llama(shards=2), tmp_path / "out", dtype="float32")["linked"] == 2


def test_only_shards_that_change_are_rewritten(llama: Make, tmp_path: Path) -> None:
    source = llama(shards=2)
    second = shards(source)[1]
    save_file({name: array.astype(np.float16) for name, array in load_file(second).items()}, second)
    summary = import_checkpoint(source, tmp_path / "out", dtype="float32")
    assert summary["linked"] == 1
    assert {info.dtype for info in Checkpoint.open(tmp_path / "out").tensors.values()} == {"float32"}
    kept = import_checkpoint(source, tmp_path / "mixed")
    assert any("mixes float16 and float32" in warning for warning in kept["warnings"])


def test_float16_overflow_is_an_error_that_names_the_tensor(llama: Make, tmp_path: Path) -> None:
    source = llama()
    tensors = dict(load_file(source / "model.safetensors"))
    tensors["model.norm.weight"] = np.full(32, 1e6, np.float32)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=r"model.norm.weight.*do not fit float16"):
        import_checkpoint(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_companions_travel_and_are_files_of_their_own(llama: Make, tmp_path: Path) -> None:
    source, out = llama(), tmp_path / "out"
    for name in ("tokenizer.json", "chat_template.jinja", "README.md"):
        (source / name).write_text("{}")
    import_checkpoint(source, out)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "chat_template.jinja").exists() and not (out / "README.md").exists()
    assert not any(file.is_symlink() for file in out.iterdir())


def test_a_companion_that_leaves_the_directory_is_refused(llama: Make, tmp_path: Path) -> None:
    source = llama()
    (tmp_path / "secret").write_text("x")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="link that leaves the directory"):
        import_checkpoint(source, tmp_path / "out")


def test_a_second_run_has_nothing_to_do(llama: Make, tmp_path: Path) -> None:
    source, out = llama(), tmp_path / "out"
    first = import_checkpoint(source, out)
    again = import_checkpoint(source, out)
    assert (first["up_to_date"], again["up_to_date"]) == (False, True)


def test_an_output_that_exists_is_left_alone(llama: Make, tmp_path: Path) -> None:
    source, out = llama(), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="exists"):
        import_checkpoint(source, out)
    assert (out / "mine.txt").read_text() == "x"
    import_checkpoint(source, tmp_path / "two")
    with pytest.raises(InputError, match="overwrite"):
        import_checkpoint(source, tmp_path / "two", dtype="float16")
    import_checkpoint(source, tmp_path / "two", dtype="float16", overwrite=True)


def test_bytes_do_not_depend_on_jobs(llama: Make, tmp_path: Path) -> None:
    source = llama(shards=2)
    for jobs in (1, 3):
        import_checkpoint(source, tmp_path / f"out{jobs}", dtype="bfloat16", jobs=jobs)
    one, three = (shards(tmp_path / f"out{jobs}") for jobs in (1, 3))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in three]


def test_unknown_dtype(llama: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dtype: expected one of keep, .*found 'int4'"):
        import_checkpoint(llama(), tmp_path / "out", dtype="int4")


def test_missing_shard(llama: Make, tmp_path: Path) -> None:
    source = llama(shards=2)
    shards(source)[1].unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002.safetensors.*missing"):
        import_checkpoint(source, tmp_path / "out")


def test_truncated_shard(llama: Make, tmp_path: Path) -> None:
    source = llama(shards=2)
    file = shards(source)[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated: 100 bytes are missing"):
        import_checkpoint(source, tmp_path / "out")


def test_missing_unexpected_and_misshapen_tensors_in_one_error(llama: Make) -> None:
    k, v = (f"model.layers.1.self_attn.{x}_proj.weight" for x in "kv")
    source = llama(drop=[k], add={v: (8, 32), "model.extra.weight": (3,)})
    with pytest.raises(InputError) as caught:
        plan_import(source)
    text = str(caught.value)
    assert f"missing: '{k}' [16, 32]" in text
    assert f"'{v}' expected [16, 32], found [8, 32]" in text
    assert "unexpected: 'model.extra.weight' [3]" in text


def test_old_rotary_buffers_are_ignored(llama: Make, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    import_checkpoint(llama(add={name: (4,)}), tmp_path / "out")
    assert name not in Checkpoint.open(tmp_path / "out").tensors


def test_untied_model_without_an_output_projection(llama: Make) -> None:
    with pytest.raises(InputError, match=r"lm_head.weight is missing.*set tie_word_embeddings to true"):
        plan_import(llama(drop=["lm_head.weight"]))


@pytest.mark.parametrize("equal", [True, False])
def test_tied_model_with_an_output_projection(tmp_path: Path, equal: bool) -> None:
    tensors = random_tensors(llama_shapes())
    if equal:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    source = write_source(tmp_path / "source", family_config("llama", tie_word_embeddings=True), tensors)
    if not equal:
        with pytest.raises(InputError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
            plan_import(source)
        return
    summary = import_checkpoint(source, tmp_path / "out")
    assert any("lm_head.weight: equals" in warning for warning in summary["warnings"])
    assert "lm_head.weight" not in Checkpoint.open(tmp_path / "out").tensors


@pytest.mark.parametrize("dtype", ["int8", "int32"])
def test_quantised_tensors_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    tensors: dict[str, Any] = random_tensors(llama_shapes())
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48, 32), dtype)
    source = write_source(tmp_path / "source", family_config("llama"), tensors)
    with pytest.raises(InputError, match=f"'model.layers.0.mlp.up_proj.weight'.*holds {dtype}"):
        plan_import(source)


def test_float64_must_be_cast(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", family_config("llama"), random_tensors(llama_shapes(), "float64"))
    with pytest.raises(InputError, match=r"holds float64.*choose dtype float32"):
        import_checkpoint(source, tmp_path / "out")
    import_checkpoint(source, tmp_path / "out", dtype="float32")


def test_neither_torch_nor_transformers_is_imported(llama: Make, tmp_path: Path) -> None:
    source = llama()
    program = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from ultramem_deploy.converters.importers import import_checkpoint\n"
        f"import_checkpoint(Path({str(source)!r}), Path({str(tmp_path / 'out')!r}), dtype='bfloat16')\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
