from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ultramem_deploy.checkpoint.index import INDEX_NAME, locate
from ultramem_deploy.errors import InputError


def make(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_file({"a": np.ones(1, np.float32)}, directory / name)


def index(directory: Path, weight_map: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def test_which_file_is_chosen(tmp_path: Path) -> None:
    make(tmp_path, "other.safetensors")
    assert locate(tmp_path) == {tmp_path / "other.safetensors": None}
    make(tmp_path, "model.safetensors")
    assert locate(tmp_path) == {tmp_path / "model.safetensors": None}
    index(tmp_path, {"a": "other.safetensors"})
    assert locate(tmp_path) == {tmp_path / "other.safetensors": ["a"]}


def test_several_files_without_an_index(tmp_path: Path) -> None:
    make(tmp_path, "x.safetensors", "y.safetensors")
    with pytest.raises(InputError, match=r"holds 2 .safetensors files \(x.safetensors, y.safetensors\)"):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"), [("none", "no such file"), (".", "holds no .safetensors"), ("t.txt", "expected a")]
)
def test_what_is_no_checkpoint(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(InputError, match=says):
        locate(tmp_path / name)


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "a/../../out.safetensors", "", "a\0b"])
def test_names_that_escape_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, "out.safetensors")
    index(tmp_path / "in", {"a": name})
    with pytest.raises(InputError, match="must be relative and stay inside"):
        locate(tmp_path / "in")


def test_links_that_escape_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "out.safetensors")
    index(tmp_path / "in", {"a": "link.safetensors"})
    (tmp_path / "in" / "link.safetensors").symlink_to("../out.safetensors")
    with pytest.raises(InputError, match="link that leaves the directory"):
        locate(tmp_path / "in")


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    make(tmp_path, "real.safetensors")
    (tmp_path / "model.safetensors").symlink_to("real.safetensors")
    assert locate(tmp_path) == {tmp_path / "model.safetensors": None}


def test_the_hugging_face_cache_is_read(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    make(tmp_path, "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "blobs" / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert locate(snapshot) == {snapshot / "model.safetensors": None}


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index(tmp_path, {"a": "gone-00001.safetensors"})
    with pytest.raises(InputError, match="'gone-00001.safetensors' is missing"):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "says"), [({}, "weight_map"), ([], "weight_map"), ({"a": 3}, "'a': expected a file name")]
)
def test_index_of_another_form(tmp_path: Path, weight_map: object, says: str) -> None:
    index(tmp_path, weight_map)
    with pytest.raises(InputError, match=says):
        locate(tmp_path)


def test_index_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text("{'a'")
    with pytest.raises(InputError, match="the index is not valid JSON"):
        locate(tmp_path)
