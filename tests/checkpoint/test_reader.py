from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.errors import InputError


def test_arrays_equal_those_of_the_library(source: Path) -> None:
    checkpoint = Checkpoint.open(source)
    expected = load_file(source / "model.safetensors")
    assert list(checkpoint.tensors) == sorted(expected)
    assert checkpoint.files == (source / "model.safetensors",)
    assert checkpoint.metadata["made"] == "here"
    for name, array in expected.items():
        found = checkpoint.array(name)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(checkpoint.torch(name).numpy(), array)


def test_torch_dtypes_come_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {
        "bf16": torch.randn(5, 3).to(torch.bfloat16),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "fp8w": torch.randn(4).to(torch.float8_e5m2),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.0, dtype=torch.bfloat16),
        "none": torch.zeros(3, 0, dtype=torch.bfloat16),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        found = checkpoint.torch(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8)) if tensor.dim() else found == tensor
    assert checkpoint.array("bf16").dtype == ml_dtypes.bfloat16


def test_torch_shares_the_mapped_memory(source: Path) -> None:
    checkpoint = Checkpoint.open(source)
    assert checkpoint.torch("table").data_ptr() == checkpoint.array("table").ctypes.data


def test_misaligned_tensors_of_other_writers(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    text = json.dumps(header).encode()
    data = b"\x07" + np.array([1.5, -2.0], np.float32).tobytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.torch("b").tolist() == [1.5, -2.0]
    assert checkpoint.array("b").tolist() == [1.5, -2.0]


@pytest.mark.parametrize("method", ["rows", "read_rows"])
def test_rows(source: Path, method: str) -> None:
    checkpoint = Checkpoint.open(source)
    rows = getattr(checkpoint, method)
    np.testing.assert_array_equal(rows("table", 10, 20), checkpoint.array("table")[10:20])
    assert rows("table", 5, 5).shape == (0, 8)
    assert rows("scale", 0, 1).tolist() == [0.5]
    assert rows("empty", 0, 0).shape == (0, 3)
    with pytest.raises(IndexError, match="'table', which has 100"):
        rows("table", 90, 101)
    assert rows("table", 0, 3).flags.writeable == (method == "read_rows")


def test_unknown_tensor_names_the_closest(source: Path) -> None:
    with pytest.raises(InputError, match="no tensor 'tabel'; closest: 'table'"):
        Checkpoint.open(source).array("tabel")


def sharded(directory: Path) -> Path:
    save_file({"a": np.ones(3, np.float32), "extra": np.ones(1, np.float32)}, directory / "m-1.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, directory / "m-2.safetensors")
    write_index(directory, {"a": "m-1.safetensors", "b": "m-2.safetensors"})
    return directory


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_index(tmp_path: Path) -> None:
    for path in (sharded(tmp_path), tmp_path / "model.safetensors.index.json"):
        checkpoint = Checkpoint.open(path)
        assert list(checkpoint.tensors) == ["a", "b"]
        assert [file.name for file in checkpoint.files] == ["m-1.safetensors", "m-2.safetensors"]


def test_promised_tensor_that_is_not_there(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_index(tmp_path, {"a": "m-2.safetensors"})
    with pytest.raises(InputError, match=r"'a' in m-2\.safetensors, which does not hold it"):
        Checkpoint.open(tmp_path)


def test_truncated_shard_says_how_much_is_missing(tmp_path: Path) -> None:
    file = sharded(tmp_path) / "m-2.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"m-2\.safetensors: truncated: 3 bytes are missing"):
        Checkpoint.open(tmp_path)


def test_file_that_vanishes_after_opening(source: Path) -> None:
    checkpoint = Checkpoint.open(source)
    (source / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be mapped"):
        checkpoint.array("table")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.read_rows("table", 0, 1)


def test_gather_reads_rows_in_any_order(source: Path) -> None:
    checkpoint = Checkpoint.open(source)
    for name, rows in (("table", [99, 0, 7, 7, 3]), ("ids", [6, 0, 0]), ("table", [])):
        wanted = np.asarray(rows, np.int64)
        found = checkpoint.gather(name, wanted)
        np.testing.assert_array_equal(found, checkpoint.array(name)[wanted])
        assert found.flags.owndata and found.flags.writeable
    many = np.random.default_rng(0).integers(0, 100, 3000)
    np.testing.assert_array_equal(checkpoint.gather("table", many), checkpoint.array("table")[many])
    for outside in (-1, 100):
        with pytest.raises(IndexError, match="of tensor 'table', which has 100"):
            checkpoint.gather("table", np.asarray([0, outside]))
