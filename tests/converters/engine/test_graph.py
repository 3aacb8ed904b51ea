"""What is done to the graph before TensorRT parses it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tests import builders
from tests.ops.cases import ENCODINGS, decoded, normal, quantised
from tools.check_tensorrt import registry
from ultramem_deploy import pipeline
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.engine import BuildOptions
from ultramem_deploy.converters.engine.builder import EngineBuilder
from ultramem_deploy.converters.engine.graph import (
    hand_tables_to_plugins,
    inline_operators,
    mark_plugins,
    take_tables_out,
)
from ultramem_deploy.converters.engine.profiles import Profile, Range
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.errors import InputError
from ultramem_deploy.ops import DOMAIN, VERSION
from ultramem_deploy.ops.sparse_lookup import OPERATOR
from ultramem_deploy.runtime.bundle_files import table_fingerprint
from ultramem_deploy.runtime.engine_backends import TENSORRT_RTX
from ultramem_deploy.runtime.plugins import tensorrt_library
from ultramem_deploy.runtime.tensorrt_plugins import load_plugins

NAMES = ("tables.t.values", "addresses", "scores", "tables.t.scales")


def lookup_model(table: Any, encoding: str) -> onnx.ModelProto:
    """One SparseLookup over a quantised table that lies in a file."""
    kind = TensorProto.INT8 if encoding == "int8" else TensorProto.UINT8
    tensors = []
    for name, data, element in ((NAMES[0], table["table"], kind), (NAMES[3], table["scales"], TensorProto.FLOAT)):
        tensor = TensorProto(name=name, data_type=element, dims=data.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "t.safetensors"), ("offset", "0"), ("length", str(data.nbytes))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    port = helper.make_tensor_value_info
    node = helper.make_node(
        "SparseLookup", NAMES, ["output"], domain=DOMAIN, blocks=1, encoding=ENCODINGS.index(encoding)
    )
    inputs = [
        port("addresses", TensorProto.INT64, ["batch_size", 3]), port("scores", TensorProto.FLOAT, ["batch_size", 3, 1])
    ]  # fmt: skip
    graph = helper.make_graph([node], "g", inputs, [port("output", TensorProto.FLOAT, ["batch_size", None])], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, functions=[OPERATOR.function_for(encoding)], opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_packed_tables_are_read_as_int8(encoding: str, tmp_path: Path) -> None:
    """The same bytes, signed, give the same numbers; and TensorRT takes the graph."""
    values, scores = normal(4, (9, 32), (2, 3, 1))
    table = quantised(values, encoding)
    addresses = np.array([[0, 8, 3], [3, 1, 7]])
    model = lookup_model(table, encoding)
    found = take_tables_out(model)
    assert {name: t.dtype for name, t in found.items()} == {NAMES[0]: "int8", NAMES[3]: "float32"}
    inlined = inline_operators(model)
    session = onnxruntime.InferenceSession(cast(Any, inlined).SerializeToString())
    signed = table["table"].view(torch.int8).numpy()
    feeds = dict(zip(NAMES, (signed, addresses, scores.numpy(), table["scales"].numpy()), strict=True))
    exact = decoded(table["table"]) * table["scales"].double().numpy()[:, None]
    expected = (exact[addresses] * scores.double().numpy()).sum(1)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-5)
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")
    one = Range(1, 1, 4)
    builder = EngineBuilder(rtx, TENSORRT_RTX, "packed.engine")
    built = builder.build(inlined, tmp_path, [Profile("decode", one, one, one)], BuildOptions("tensorrt-rtx"), None)
    assert memoryview(built.engine).nbytes > 0


def test_plugins_are_marked(tmp_path: Path) -> None:
    export_onnx(builders.write_checkpoint(tmp_path / "c", builders.V2), tmp_path / "p", target="portable")
    model = mark_plugins(onnx.load(tmp_path / "p" / "model.onnx", load_external_data=False))
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert len(ours) == 6 and not model.functions
    for node in ours:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_namespace"] == b"ai.ultramem" and attributes["plugin_version"] == b"1"


@pytest.fixture
def own_tables(tmp_path: Path) -> tuple[onnx.ModelProto, set[str], Path]:
    """A quantised model whose plugins bring their tables: graph, names of the tables, bundle."""
    source = builders.write_checkpoint(tmp_path / "c", builders.V2)
    pipeline.quantize(source, tmp_path / "q", tables="int8")
    export_onnx(tmp_path / "q", tmp_path / "p", target="portable")
    model = onnx.load(tmp_path / "p" / "model.onnx", load_external_data=False)
    tables = take_tables_out(model)
    marked = mark_plugins(model)
    return marked, hand_tables_to_plugins(marked, tables, tmp_path / "p"), tmp_path / "p"


def test_plugins_bring_their_tables(own_tables: tuple[onnx.ModelProto, set[str], Path]) -> None:
    """Values and scales are fields, not inputs; shuffles, which other nodes read, stay inputs."""
    model, handed, bundle = own_tables
    tensors = Checkpoint.open(bundle).tensors
    left = {value.name for value in model.graph.input}
    assert "tables.t.values" in handed and not handed & left and "memory.0.shuffle" in left
    assert not any(name.startswith("tables.") for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        fields = {a.name: a.s.decode() for a in node.attribute if a.name in ("table", "scales")}
        assert bool(fields) == (node.op_type in ("SparseLookup", "SparseGate"))
        if node.op_type == "SparseLookup":
            info = tensors["tables.t.values"]
            dtype, shape, offset, fingerprint, file = fields["table"].split()
            assert (dtype, shape, int(offset), file) == ("int8", "60x16", info.offset, info.file.name)
            assert fingerprint == table_fingerprint(bundle / file, info.offset, info.nbytes)
            assert fields["scales"].startswith("float32 60 ") and len(node.input) == 2


def test_tensorrt_makes_plugins_with_tables_of_their_own(
    own_tables: tuple[onnx.ModelProto, set[str], Path],
) -> None:
    """The fields as the graph has them, by TensorRT's own registry."""
    trt = registry.runtime()
    try:
        library = tensorrt_library()
    except InputError as error:
        pytest.skip(str(error))
    if trt is None:
        pytest.skip(registry.MISSING)
    load_plugins(trt, library)
    for node in own_tables[0].graph.node:
        if node.domain == DOMAIN and node.op_type != "TuckerTopK":
            creator = trt.get_plugin_registry().get_creator(node.op_type, "1", DOMAIN)
            fields: dict[str, Any] = {}
            for a in node.attribute:
                if not a.name.startswith("plugin_"):
                    text = np.frombuffer(a.s, np.int8)
                    fields[a.name] = text if a.type == onnx.AttributeProto.STRING else np.array([a.i])
            assert registry.create(trt, creator, fields) is not None
            fields.pop("scales")
            assert registry.create(trt, creator, fields) is None


def test_the_library_offers_every_plugin() -> None:
    """TensorRT's own registry, in its lean runtime, which needs no GPU."""
    trt = pytest.importorskip("tensorrt_lean_bindings", reason="tensorrt-lean is not installed")
    try:
        library = tensorrt_library()
    except InputError as error:
        pytest.skip(str(error))
    load_plugins(trt, library)
    registry = SimpleNamespace(load_library=lambda path: None, get_creator=lambda *names: None)
    empty = SimpleNamespace(get_plugin_registry=lambda: registry, __version__="11.4")
    with pytest.raises(InputError, match="offers TensorRT 11.4 no plugin TuckerTopK version 1 in ai.ultramem"):
        load_plugins(empty, library)
