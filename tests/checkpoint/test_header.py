from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ultramem_deploy.checkpoint.header import SAFETENSORS_CODES, itemsize, numpy_dtype, read_header
from ultramem_deploy.errors import InputError

QUIET = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw(header: object, data: bytes = b"", text: bytes | None = None) -> bytes:
    body = json.dumps(header).encode() if text is None else text
    return struct.pack("<Q", len(body)) + body + data


def entry(dtype: Any = "F32", shape: Any = (2,), span: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


def test_reads_what_the_safetensors_library_wrote(source: Path) -> None:
    file = source / "model.safetensors"
    tensors, metadata = read_header(file)
    assert metadata == {"format": "pt", "made": "here"}
    assert tensors["table"].shape == (100, 8)
    assert tensors["scale"].shape == () and tensors["scale"].nbytes == 4
    assert tensors["empty"].nbytes == 0
    assert tensors["ids"].dtype == "int64"
    info = tensors["proj"]
    found = np.frombuffer(file.read_bytes()[info.offset : info.offset + info.nbytes], np.float32).reshape(4, 8)
    np.testing.assert_array_equal(found, safetensors.numpy.load_file(file)["proj"])


def test_every_dtype_has_a_numpy_type_of_its_size() -> None:
    for name in SAFETENSORS_CODES.values():
        assert numpy_dtype(name).name == name
        assert numpy_dtype(name).itemsize == itemsize(name)
    with pytest.raises(InputError, match="unknown dtype 'half'.*bfloat16"):
        numpy_dtype("half")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes, expected at least 8"),
        (b"\x01\x02", "2 bytes, expected at least 8"),
        (struct.pack("<Q", 2**63), "claims a header"),
        (struct.pack("<Q", 100) + b"{}", "98 bytes missing"),
        (raw(None, text=b" {}"), "does not start with"),
        (raw(None, text=b"[]"), "does not start with"),
        (raw(None, text=b"{"), "not valid JSON"),
        (raw(None, text=b'{"\xff": 1}'), "not valid JSON"),
        (raw(None, text=b'{"a": NaN}'), "NaN is not JSON"),
        (raw(None, text=b'{"a": 1, "a": 2}'), "appears twice"),
        (raw(None, text=b'{"\\ud800": 1}'), "not valid JSON"),
        (raw(None, text=b'{"a": ' + b"[" * 200_000), "nested too deeply"),
        (raw({"a": 1}), "expected an object"),
        (raw({"__metadata__": {"a": 1}}), "strings to strings"),
        (raw({"a\nb": entry("F31")}), r"'a\\nb': unsupported dtype 'F31'"),
        (raw({"a": entry(["F32"])}), "unsupported dtype"),
        (raw({"a": entry(shape=[-2])}, bytes(8)), "shape must be a list of integers"),
        (raw({"a": entry(shape=[2.0])}, bytes(8)), "shape must be a list of integers"),
        (raw({"a": entry(shape=[True, 2])}, bytes(8)), "shape must be a list of integers"),
        (raw({"a": entry(shape=[2**62, 2**62, 0])}), "does not fit 64-bit"),
        (raw({"a": entry(shape=[1] * 65)}, bytes(4)), "65 dimensions"),
        (raw({"a": entry(span=[0, 4])}, bytes(4)), "do not span the 8 bytes"),
        (raw({"a": entry(span=[8, 0])}, bytes(8)), "do not span the 8 bytes"),
        (raw({"a": entry(span=[0])}, bytes(8)), "do not span"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}), "data_offsets must be"),
        (raw({"a": entry(span=[4, 12])}, bytes(12)), "hole before it"),
        (raw({"a": entry(), "b": entry(span=[4, 12])}, bytes(12)), "overlaps"),
        (raw({"a": entry()}, bytes(5)), "truncated: 3 bytes are missing"),
        (raw({"a": entry()}, bytes(9)), "1 bytes follow the last tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_files_give_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_header(file)
    assert "\n" not in str(caught.value) and "bad.safetensors" in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_header(path)


def check(file: Path, content: bytes) -> None:
    """Either a header that fits its file, or the one-line error; never anything else."""
    file.write_bytes(content)
    try:
        tensors, _ = read_header(file)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
    else:
        assert sum(info.nbytes for info in tensors.values()) <= len(content)


@QUIET
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "any.safetensors", content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "U8", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16"]) | VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | VALUES,
    }
)


@QUIET
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRIES | VALUES, max_size=4), st.binary(max_size=40)
)
def test_any_json(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    check(tmp_path / "json.safetensors", raw(header, data))


@QUIET
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 60) | st.just(0),
    st.binary(max_size=3),
)
def test_mutated_files(tmp_path: Path, source: Path, edits: list[tuple[int, int]], cut: int, tail: bytes) -> None:
    content = bytearray((source / "model.safetensors").read_bytes()) if source.exists() else bytearray()
    for position, value in edits:
        content[position % 600] = value  # the header and the first tensors: later bytes are data, any value is right
    check(tmp_path / "mutated.safetensors", bytes(content[: len(content) - cut]) + tail)
