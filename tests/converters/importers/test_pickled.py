"""State dicts and DCP directories read as data: every form of tensor, and nothing that runs code or hangs."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from ultramem_deploy.converters.importers import import_checkpoint
from ultramem_deploy.converters.importers.base import SourceTensor
from ultramem_deploy.converters.importers.pickled import read_pickle
from ultramem_deploy.converters.importers.pickled_dcp import read_dcp
from ultramem_deploy.converters.importers.pickled_zip import read_state_dict
from ultramem_deploy.errors import InputError
from ultramem_deploy.yaml_file import read_yaml

from .official_cases import make_config, make_state, write_config, write_official
from .official_forward import Official
from .test_olmo_ultramem import IDS, logits

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def same(found: SourceTensor, expected: torch.Tensor) -> bool:
    expected = expected.detach().contiguous()
    count = found.shape[0] if found.shape else 1
    rows = found.rows(0, count).reshape(found.shape)
    as_bytes = expected.reshape(-1).view(torch.uint8).numpy().tobytes()
    return found.shape == tuple(expected.shape) and rows.tobytes() == as_bytes


def saved(tmp_path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, tmp_path / "x.pt", **options)
    return tmp_path / "x.pt"


def test_every_dtype(tmp_path: Path) -> None:
    state = {str(dtype): torch.arange(12).reshape(3, 4).to(dtype) for dtype in DTYPES}
    found = read_state_dict(saved(tmp_path, state))
    assert set(found) == set(state) and all(same(found[name], tensor) for name, tensor in state.items())
    assert {f"torch.{tensor.dtype}" for tensor in found.values()} == set(state)


def test_views_parameters_scalars_and_nested_dicts(tmp_path: Path) -> None:
    base = torch.randn(6, 4, 5)
    state = OrderedDict(
        base=base,
        transposed=base.permute(2, 0, 1),
        part=base[2:5, 1:3, ::2],
        column=base[:, 0, 0],
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(3)),
        nested={"deep": {"one": torch.ones(2)}, "note": "text", "step": 3},
        version=1,
    )
    found = read_state_dict(saved(tmp_path, state))
    for name in ("base", "transposed", "part", "column", "scalar", "empty", "parameter"):
        assert same(found[name], state[name]), name
    assert same(found["nested.deep.one"], torch.ones(2))
    assert len(found) == 8
    assert np.array_equal(found["transposed"].rows(1, 3), base.permute(2, 0, 1)[1:3].numpy())


def test_a_module_s_state_dict(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    found = read_state_dict(saved(tmp_path, state))
    assert all(same(found[name], tensor) for name, tensor in state.items())


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    file = saved(tmp_path, {"a": torch.zeros(2), "b": Evil(target)}, pickle_protocol=protocol)
    with pytest.raises(InputError, match=r"a pickle that can run code \(it names '(io|__builtin__|_io)\.open'"):
        read_state_dict(file)
    assert not target.exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch\nevil.Storage\n.",
        b"(S'ls'\nios\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",  # attributes of a class
        b"\x80\x02}" + b"K\x00\x85" + b"2\x86" * 60 + b"K\x01s.",  # a key that takes 2^60 steps to hash
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a bytearray of a terabyte
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo of four billion
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02K\x01K\x02Rq\x00.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"\x85" * 100_000 + b".",
        b"",
        b".",
    ],
)
def test_hostile_pickles(attack: bytes) -> None:
    try:
        content = read_pickle(attack, "x", ("collections.OrderedDict",))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert isinstance(content, tuple)  # deep, yet data


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a state dict"):
        read_state_dict(saved(tmp_path, torch.nn.Parameter(torch.zeros(1)) if False else [1, 2]))
    with pytest.raises(InputError, match="holds no tensors"):
        read_state_dict(saved(tmp_path, {"a": 1}))
    with pytest.raises(InputError, match="not a zip file"):
        read_state_dict(saved(tmp_path, {"a": torch.zeros(1)}, _use_new_zipfile_serialization=False))
    with pytest.raises(InputError, match="cannot be read"):
        read_state_dict(tmp_path / "missing.pt")


def test_compressed_and_truncated_files(tmp_path: Path) -> None:
    file = saved(tmp_path, {"a": torch.zeros(100)})
    members = zipfile.ZipFile(file)
    with zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as other:
        for name in members.namelist():
            other.writestr(name, members.read(name))
    with pytest.raises(InputError, match="is compressed"):
        read_state_dict(tmp_path / "y.pt")
    (tmp_path / "z.pt").write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a zip file"):
        read_state_dict(tmp_path / "z.pt")


def test_a_tensor_larger_than_its_storage(tmp_path: Path) -> None:
    expanded = torch.zeros(1).expand(1 << 40)
    with pytest.raises(InputError, match="does not fit its storage of 1 numbers"):
        read_state_dict(saved(tmp_path, {"a": expanded}))


def _read_all(file: Path) -> None:
    for tensor in read_state_dict(file).values():
        tensor.rows(0, min(2, tensor.shape[0]) if tensor.shape else 1)


_SMALL = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16).t()}


@given(st.data())
@settings(max_examples=300)
def test_mutated_zips_give_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save(_SMALL, buffer)
    whole = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(len(whole) // 2, len(whole)))] if data.draw(st.booleans()) else whole
    file = tmp_path_factory.getbasetemp() / "mutated.pt"
    file.write_bytes(whole)
    _one_line(lambda: _read_all(file))


@given(st.data())
@settings(max_examples=300)
def test_mutated_pickles_give_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save(_SMALL, buffer)
    members = zipfile.ZipFile(buffer)
    file = tmp_path_factory.getbasetemp() / "repickled.pt"
    with zipfile.ZipFile(file, "w") as other:
        for name in members.namelist():
            content = bytearray(members.read(name))
            if name.endswith("data.pkl"):
                for _ in range(data.draw(st.integers(1, 5))):
                    at = data.draw(st.integers(0, len(content) - 1))
                    content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
            other.writestr(name, bytes(content))
    _one_line(lambda: _read_all(file))


def _one_line(read: Any) -> None:
    try:
        read()
    except InputError as error:
        assert "\n" not in str(error)


def write_dcp(directory: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    """As FSDP does: the model under `model`, the optimizer beside it."""
    write_config(directory, config)
    moments = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    content = {"model": state, "optim": {"state": moments, "param_groups": [{"lr": 0.1}]}}
    dcp.save(content, checkpoint_id=directory / "model_and_optim", no_dist=True)
    return directory


def test_a_dcp_directory_is_a_checkpoint(tmp_path: Path) -> None:
    config = make_config(weight_tying=False)
    state = make_state(config)
    import_checkpoint(write_dcp(tmp_path / "source", config, state), tmp_path / "out")
    assert (logits(tmp_path / "out") - Official(config, state)(IDS)).abs().max() < 1e-4
    plain = write_official(tmp_path / "plain", config, state)
    import_checkpoint(plain, tmp_path / "other")
    one, two = (sorted(path.glob("*.safetensors")) for path in (tmp_path / "out", tmp_path / "other"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_pieces_of_two_processes_are_put_together(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("save_sharded.py")), str(tmp_path / "dcp"), "3"]
    ranks = [subprocess.Popen([*program, str(rank), str(tmp_path / "rendezvous")]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    whole = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    found = read_dcp(tmp_path / "dcp")
    assert same(found["model.rows"], whole) and same(found["model.copied"], whole)
    assert same(found["model.columns"], whole.bfloat16()) and same(found["model.few"], whole[:1])
    assert np.array_equal(found["model.rows"].rows(3, 6), whole[3:6].numpy())
    next((tmp_path / "dcp").glob("__1_*")).unlink()
    with pytest.raises(InputError, match="'__1_0.distcp' is missing"):
        read_dcp(tmp_path / "dcp")


def small_dcp(directory: Path) -> Path:
    dcp.save({"model": {"a": torch.ones(4, 3), "b": torch.zeros(2)}}, checkpoint_id=directory, no_dist=True)
    return directory


def test_metadata_may_name_a_member_as_some_pythons_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_name(member: Any, protocol: int) -> Any:
        return getattr, (type(member), member.name)

    # As Python 3.11.0 to 3.11.3 pickle enumerations.
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    small_dcp(tmp_path / "dcp")
    assert b"getattr" in (tmp_path / "dcp" / ".metadata").read_bytes()
    assert sorted(read_dcp(tmp_path / "dcp")) == ["model.a", "model.b"]


def test_metadata_cannot_ask_for_attributes_of_what_it_made(tmp_path: Path) -> None:
    small_dcp(tmp_path / "dcp")
    attack = b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x01a\x8c\x09__class__\x86R."
    (tmp_path / "dcp" / ".metadata").write_bytes(attack)
    with pytest.raises(InputError, match="it asks for an attribute of what is no class"):
        read_dcp(tmp_path / "dcp")


def test_metadata_that_runs_code_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "made"
    small_dcp(tmp_path / "dcp")
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(InputError, match="a pickle that can run code"):
        read_dcp(tmp_path / "dcp")
    assert not target.exists()


def test_metadata_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    file = small_dcp(tmp_path / "dcp") / ".metadata"
    (tmp_path / "x.distcpxx").write_bytes(b"")
    file.write_bytes(file.read_bytes().replace(b"__0_0.distcp", b"../x.distcpx"))
    with pytest.raises(InputError, match="must be relative and stay inside"):
        read_dcp(tmp_path / "dcp")


@given(st.data())
@settings(max_examples=300)
def test_mutated_metadata_gives_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed_dcp"
    if not (directory / "good").exists():
        small_dcp(directory)
        (directory / "good").write_bytes((directory / ".metadata").read_bytes())
    content = bytearray((directory / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    (directory / ".metadata").write_bytes(content)

    def read() -> None:
        for tensor in read_dcp(directory).values():
            tensor.rows(0, min(1, tensor.shape[0]) if tensor.shape else 1)

    _one_line(read)


_YAML = st.text("abmodel:0123456789 -[]{}&*!|>'\"#\n.eE", max_size=60)


@given(_YAML | st.binary(max_size=40))
@settings(max_examples=300)
def test_any_yaml_gives_a_mapping_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    _one_line(lambda: read_yaml(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x\n", "aliases are not supported"),
        ("a: 1\na: 2\n", "key 'a' appears twice"),
        ("a: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("- 1\n", "expected a YAML mapping, found list"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_yaml(tmp_path / "config.yaml")


def test_numbers_and_paths_in_yaml(tmp_path: Path) -> None:
    text = "a: 1e-5\nb: 5:8\nc: 10_000\nd: 1.0e+3\ne: yes\nf: null\ng: 2020-01-01\nh: .5\ni: 007\n"
    (tmp_path / "config.yaml").write_text(text)
    expected = {"a": 1e-5, "b": "5:8", "c": 10000, "d": 1000.0, "e": True, "f": None, "g": "2020-01-01", "h": 0.5}
    assert read_yaml(tmp_path / "config.yaml") == expected | {"i": "007"}
