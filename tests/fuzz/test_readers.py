"""Every reader of other people's files on damaged ones: a model, or one line; never a crash, a hang or a foreign file.

ULTRAMEM_FUZZ_EXAMPLES sets how many inputs each test makes: `make fuzz` gives 12,000, more than 100,000 in all.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests import builders
from tests.converters.importers.official_cases import V2, make_config, write_official
from tests.converters.importers.test_meta_memory import make_state, params, write
from tests.fuzz.guard import answers
from tests.fuzz.mutate import EDITS, Edit, as_json, damaged_bytes, damaged_json
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.importers import plan_import
from ultramem_deploy.converters.importers.base import SourceTensor
from ultramem_deploy.converters.importers.pickled import read_pickle
from ultramem_deploy.converters.importers.pickled_dcp import read_dcp
from ultramem_deploy.converters.importers.pickled_zip import read_state_dict
from ultramem_deploy.inspection import inspect
from ultramem_deploy.pipeline import diff

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
MANY = settings(
    max_examples=int(os.environ.get("ULTRAMEM_FUZZ_EXAMPLES", "250")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Seed:
    """A whole artifact in a directory of its own, and the one file of it that is damaged."""

    def __init__(self, root: Path, name: str, read: Callable[[Path], object]) -> None:
        self.root, self.file, self.read = root, root / name, read
        self.whole = self.file.read_bytes()
        read(root)  # what is imported on first use is imported now
        assert answers(lambda: read(root), root) is None

    def answer(self, content: bytes) -> str | None:
        self.file.write_bytes(content)
        return answers(lambda: self.read(self.root), self.root)


def read_tensors(root: Path) -> None:
    checkpoint = Checkpoint.open(root)
    for name, info in checkpoint.tensors.items():
        assert info.file.resolve().is_relative_to(root.resolve())
        checkpoint.read_rows(name, 0, 1 if info.shape and info.shape[0] else 0)


def read_some(tensors: dict[str, SourceTensor]) -> None:
    for tensor in tensors.values():
        tensor.rows(0, min(1, tensor.shape[0]) if tensor.shape else 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def single(base: Path) -> Seed:
    (base / "single").mkdir()
    tensors = {"a.weight": np.ones((3, 2), np.float32), "b": np.zeros(4, np.int64), "c": np.ones((), np.float16)}
    save_file(tensors, base / "single" / "model.safetensors", {"format": "pt"})
    return Seed(base / "single", "model.safetensors", read_tensors)


@pytest.fixture(scope="module")
def indexed(base: Path) -> Seed:
    """Two shards; beside the directory lies a file that no index may reach, by name or by link."""
    root = base / "indexed" / "in"
    root.mkdir(parents=True)
    for name, file in (("a", root / "one.safetensors"), ("b", root / "two.safetensors"),
                       ("a", root.parent / "outside.safetensors")):  # fmt: skip
        save_file({name: np.ones((2, 2), np.float32)}, file)
    (root / "link.safetensors").symlink_to("../outside.safetensors")
    content = {"metadata": {"total_size": 32}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (root / "model.safetensors.index.json").write_text(json.dumps(content))
    return Seed(root, "model.safetensors.index.json", read_tensors)


@pytest.fixture(scope="module")
def official(base: Path) -> Seed:
    return Seed(write_official(base / "official", make_config(**V2)), "config.yaml", plan_import)


@pytest.fixture(scope="module")
def meta(base: Path) -> Seed:
    return Seed(write(base / "meta", params(), make_state({})), "params.json", plan_import)


@pytest.fixture(scope="module")
def canonical(base: Path) -> Seed:
    return Seed(builders.write_checkpoint(base / "canonical", builders.V2), "config.json", inspect)


@pytest.fixture(scope="module")
def provenance(base: Path) -> Seed:
    return Seed(builders.write_checkpoint(base / "traced", builders.V1), "provenance.json", inspect)


@pytest.fixture(scope="module")
def delta(base: Path) -> Seed:
    one = builders.write_checkpoint(base / "from", builders.V1)
    two = builders.write_checkpoint(base / "to", builders.V1, seed=1)
    diff(one, two, out=base / "delta")
    return Seed(base / "delta", "delta.json", inspect)


@pytest.fixture(scope="module")
def state_dict(base: Path) -> Seed:
    (base / "pt").mkdir()
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, 2, dtype=torch.bfloat16).t(), "step": 3}
    torch.save(state, base / "pt" / "x.pt")
    return Seed(base / "pt", "x.pt", lambda root: read_some(read_state_dict(root / "x.pt")))


@pytest.fixture(scope="module")
def metadata(base: Path) -> Seed:
    content = {"model": {"a": torch.ones(4, 3), "b": torch.zeros(2)}, "optim": {"lr": 1.0}}
    dcp.save(content, checkpoint_id=base / "dcp", no_dist=True)
    return Seed(base / "dcp", ".metadata", lambda root: read_some(read_dcp(root)))


BYTES = ("single", "indexed", "official", "meta", "canonical", "provenance", "delta", "state_dict", "metadata")
JSON = ("indexed", "meta", "canonical", "provenance", "delta")


@pytest.mark.parametrize("name", BYTES)
def test_damaged_bytes(name: str, request: pytest.FixtureRequest) -> None:
    seed: Seed = request.getfixturevalue(name)

    @MANY
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        seed.answer(damaged_bytes(seed.whole, edits))

    check()


@pytest.mark.parametrize("name", JSON)
def test_damaged_values(name: str, request: pytest.FixtureRequest) -> None:
    seed: Seed = request.getfixturevalue(name)
    whole = json.loads(seed.whole)

    @MANY
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        seed.answer(as_json(damaged_json(whole, edits)))

    check()


def test_damaged_configurations_of_training_runs(official: Seed) -> None:
    """JSON is YAML; the values of the section that describes the model change."""
    config = make_config(**V2)

    @MANY
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        official.answer(as_json({"model": damaged_json(config, edits)}))

    check()


def test_damaged_headers(single: Seed) -> None:
    """The header's values change and its length fits: damage that gets past the first checks."""
    (length,) = struct.unpack("<Q", single.whole[:8])
    header, data = json.loads(single.whole[8 : 8 + length]), single.whole[8 + length :]

    @MANY
    @given(EDITS, st.booleans())
    def check(edits: list[Edit], of_data: bool) -> None:
        text = as_json(damaged_json(header, edits))
        single.answer(struct.pack("<Q", len(text)) + text + (damaged_bytes(data, edits) if of_data else data))

    check()


def test_damaged_pickles_in_whole_zips(state_dict: Seed) -> None:
    archive = zipfile.ZipFile(io.BytesIO(state_dict.whole))
    members = {name: archive.read(name) for name in archive.namelist()}

    @MANY
    @given(EDITS)
    def check(edits: list[Edit]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, damaged_bytes(content, edits) if name.endswith("data.pkl") else content)
        state_dict.answer(buffer.getvalue())

    check()


_NAMES = [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("torch", "load"),
          ("subprocess", "Popen"), ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"),
          ("torch", "FloatStorage"), ("torch", "Size"), ("torch.serialization", "_get_layout"), ("io", "open"),
          ("importlib", "import_module"), ("pathlib", "PosixPath"), ("torch", "hub.load"), ("", "")]  # fmt: skip
_PIECES = [
    *(f"c{module}\n{name}\n".encode() for module, name in _NAMES),
    *(f"\x8c{chr(len(module))}{module}\x8c{chr(len(name))}{name}\x93".encode("latin-1") for module, name in _NAMES),
    *(f"(S'touch made'\ni{module}\n{name}\n".encode() for module, name in _NAMES[:4]),
    *(bytes([code]) for code in b"()]}tldRbo\x81\x92aesu021Q\x94\x85\x86\x87N\x88\x8f\x90\x91\x97\x98."),
    *(b"q\x00", b"h\x00", b"P0\n", b"\x82\x01", b"\x83\x01\x00", b"\x95\x08" + b"\0" * 7),
    *(b"K\x07", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 8, b"G" + b"\x7f" * 8),
    *(b"X\x01\x00\x00\x00a", b"\x8c\x0atouch made", b"Vx\n"),
]


@MANY
@given(st.lists(st.sampled_from(_PIECES), max_size=24), st.integers(2, 5), st.booleans())
def test_hostile_pickles_run_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], protocol: int, names: bool
) -> None:
    root = tmp_path_factory.getbasetemp()
    allowed = ("collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor_v2") if names else ()
    said = answers(lambda: read_pickle(bytes([0x80, protocol]) + b"".join(pieces) + b".", "x", allowed), root)
    assert said is None or "pickle" in said
    assert not Path("made").exists()


def test_pickles_that_name_code_are_refused_whatever_surrounds_them(metadata: Seed, state_dict: Seed) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch made",)

    for content in (Evil(), {"a": Evil()}, [(Evil(),)], {"model": {"x": torch.zeros(1), "y": Evil()}}):
        said = metadata.answer(pickle.dumps(content))
        assert said is not None and "a pickle that can run code" in said
        buffer = io.BytesIO()
        torch.save(content, buffer)
        said = state_dict.answer(buffer.getvalue())
        assert said is not None and "a pickle that can run code" in said
    metadata.answer(metadata.whole)
    state_dict.answer(state_dict.whole)
