"""Real engines by tensorrt-rtx, which needs no GPU to build them: what they take, what lies beside them, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from tests import builders
from tests.converters.onnx.cases import MEMORIES
from ultramem_deploy import pipeline
from ultramem_deploy.checkpoint import Checkpoint
from ultramem_deploy.converters.engine import BuildOptions
from ultramem_deploy.converters.engine.builder import EngineBuilder
from ultramem_deploy.converters.engine.profiles import Profile, Range
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime import cuda_driver, engine_backends
from ultramem_deploy.runtime.engine_manifest import check_engine, check_model, manifest_path, read_manifest
from ultramem_deploy.spec import TableSpec

RTX = {"backend": "tensorrt-rtx", "shapes": "1x1,1x8,2x16"}
NO_GPU = cuda_driver.find_gpu() is None


@pytest.mark.parametrize("case", ["v1", "v2", "v2_swiglu", "memory_plus", "pkm", "expanded", "expanded_gated"])
def test_every_memory_kind_builds(built: Any, case: str) -> None:
    spec = MEMORIES[case]
    out, result = built(spec)
    assert result["engine_bytes"] == out.stat().st_size > 100_000
    assert (result["backend"], result["mode"]) == ("tensorrt-rtx", "portable")
    assert result["operators"]["SparseLookup"] == result["operators"]["TuckerTopK"] == len(spec.memory)
    inputs = {port["name"]: port for port in result["inputs"]}
    assert {"input_ids", "attention_mask", "past_key_values.1.value"} <= inputs.keys()
    assert {port["name"] for port in result["outputs"]} >= {"logits", "present.0.key"}
    values = {f"tables.t.{part}" for part in ("values", "pre_values")[: 1 + bool(spec.tables["t"].pre_value_width)]}
    assert {name.partition(".as_")[0] for name in result["tables"] if name.startswith("tables.")} == values
    assert all(-1 not in inputs[name]["shape"] for name in result["tables"])


def test_tables_stay_outside_the_engine(built: Any) -> None:
    """15 MB of values and shuffle do not make the engine larger: it grows by the keys (0.2 MB, twice at most) alone."""
    grown = replace(builders.ultramem_v1(), slots=160_000, row_keys=800, col_keys=800)
    large = replace(builders.V1, memory=(grown,), tables={"t": TableSpec(160_000, 16)})
    first, second = built(builders.V1)[1], built(large, name="large")[1]
    assert second["tables"] == {"tables.t.values": 160_000 * 16 * 4, "memory.0.shuffle": 640_000 * 8}
    assert second["engine_bytes"] - first["engine_bytes"] < 1_000_000


def test_a_table_of_more_than_2_to_the_31_elements(rtx: Any, tmp_path: Path) -> None:
    """As an input it is an address: the builder neither reads nor counts it."""
    rows, width, symbol = (1 << 21) + 8, 1024, "batch_size"
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["tables.t.values", "input_ids"], ["rows"], axis=0)],
        "large",
        [port("tables.t.values", TensorProto.BFLOAT16, [rows, width]), port("input_ids", TensorProto.INT64, [symbol])],
        [port("rows", TensorProto.BFLOAT16, [symbol, width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    one = Range(1, 1, 4)
    builder = EngineBuilder(rtx, engine_backends.TENSORRT_RTX, "large.engine")
    built = builder.build(model, tmp_path, [Profile("decode", one, one, one)], BuildOptions("tensorrt-rtx"), None)
    assert built.inputs[0]["shape"] == [rows, width] and memoryview(built.engine).nbytes > 0


@pytest.mark.parametrize("dtype", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_types_of_the_engine(built: Any, dtype: str, stored: str) -> None:
    _, result = built(builders.V2, stored, dtype=dtype)
    inputs = {port["name"]: port["dtype"] for port in result["inputs"]}
    outputs = {port["name"]: port["dtype"] for port in result["outputs"]}
    cache = "float32" if dtype == "tf32" else dtype
    assert inputs["past_key_values.0.key"] == outputs["present.1.value"] == cache
    assert outputs["logits"] == "float32" and inputs["input_ids"] == "int64"
    assert inputs["tables.t.values"] == stored


def test_profiles(built: Any) -> None:
    prefill, decode = built(builders.V1, shapes="1x2,2x8,4x32")[1]["profiles"]
    assert (prefill["name"], decode["name"]) == ("prefill", "decode")
    assert prefill["shapes"]["input_ids"] == {"min": [1, 2], "opt": [2, 8], "max": [4, 32]}
    assert decode["shapes"]["input_ids"] == {"min": [1, 1], "opt": [2, 1], "max": [4, 1]}
    assert decode["shapes"]["past_key_values.0.key"]["max"] == [4, 2, 31, 16]
    assert decode["shapes"]["attention_mask"]["max"] == [4, 32]


def test_trace_shows_the_memory(built: Any) -> None:
    outputs = {port["name"]: port for port in built(builders.V2, trace=True, dtype="float16")[1]["outputs"]}
    assert outputs["memory.0.indices"]["dtype"] == "int64" and outputs["memory.1.output"]["dtype"] == "float32"
    assert outputs["memory.0.indices"]["shape"] == [-1, 8] and outputs["memory.1.output"]["shape"] == [-1, 32]


def test_the_manifest_says_what_the_engine_needs(built: Any, rtx: Any) -> None:
    out, result = built(builders.V1, weight_streaming=True, workspace="64MiB", aux_streams=2)
    manifest = read_manifest(out)
    assert (manifest.backend, manifest.backend_version) == ("tensorrt-rtx", rtx.__version__)
    assert (
        manifest.options["aux_streams"] == 2
        and manifest.options["weight_streaming"]
        and manifest.options["workspace"] == 64 << 20
    )
    check_engine(out, manifest)
    directory = check_model(out, manifest)
    info = Checkpoint.open(directory).info("tables.t.values")
    table = manifest.tables["tables.t.values"]
    assert (table.file, table.offset, table.nbytes) == (info.file.name, info.offset, info.nbytes)
    assert str(out.parent) not in manifest_path(out).read_text()
    assert json.loads(manifest_path(out).read_text())["engine"]["bytes"] == result["engine_bytes"]


def test_a_second_build_is_up_to_date_and_another_one_is_refused(built: Any) -> None:
    out, first = built(builders.V1)
    source, stamp = out.parent / "tiny-source", out.stat().st_mtime_ns
    again = pipeline.build(source, out, **RTX)
    assert again["up_to_date"] and not first["up_to_date"] and out.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="made otherwise; use --overwrite"):
        pipeline.build(source, out, **RTX, dtype="float16")
    assert not pipeline.build(source, out, **RTX, dtype="float16", overwrite=True)["up_to_date"]


def test_what_a_kill_leaves_is_built_again(built: Any) -> None:
    out, _ = built(builders.V1)
    out.unlink()
    assert not pipeline.build(out.parent / "tiny-source", out, **RTX)["up_to_date"]
    check_engine(out, read_manifest(out))


def test_a_bundle_for_another_target_builds_too(rtx: Any, tmp_path: Path) -> None:
    source = builders.write_checkpoint(tmp_path / "source", builders.V1)
    pipeline.export(source, tmp_path / "bundle", target="ort")
    result = pipeline.build(tmp_path / "bundle", tmp_path / "tiny.engine", **RTX)
    assert result["operators"]["SparseLookup"] == 1


@pytest.mark.parametrize("options, said", [
    ({"backend": "cuda"}, "--backend: expected one of tensorrt, tensorrt-rtx, found 'cuda'"),
    ({"dtype": "int3"}, "--dtype: expected one of float32, tf32, float16, bfloat16, found 'int3'"),
    ({"mode": "plugin"}, "--mode plugin: tensorrt-rtx takes no plugins; use --mode portable, or --backend tensorrt"),
    ({"timing_cache": "cache"}, "--timing-cache: tensorrt-rtx has no such thing: it chooses kernels when"),
    ({"version_compatible": True}, "--version-compatible: tensorrt-rtx has no such thing: its package holds no lean"),
    ({"tables": "files"}, "--tables: expected one of inputs, resource, found 'files'"),
    ({"tables": "resource"}, "--tables resource: only plugins that lie beside the engine load tables; use"),
    ({"aux_streams": -1}, "--aux-streams: expected 0 or more, found -1"),
    ({"embed_plugin": True}, "--embed-plugin: only an engine of --mode plugin"),
    ({"workspace": "much"}, "--workspace: expected a size"),
    ({"shapes": "1x1,2x2"}, "--shapes: expected MIN,OPT,MAX"),
    ({"shapes": "4x1,2x2,1x3"}, "--shapes: batch must be positive and rise"),
    ({"shapes": "1x1,1x2,1x513"}, "--shapes: 513 tokens, the model has 512 positions"),
    ({"quick": True}, "unknown option 'quick'; expected some of backend, shapes"),
])  # fmt: skip
def test_what_is_refused(rtx: Any, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    source = builders.write_checkpoint(tmp_path / "source", builders.V1)
    with pytest.raises(InputError) as error:
        pipeline.build(source, tmp_path / "tiny.engine", **{**RTX, **options})
    assert str(error.value).startswith(said)
    assert not (tmp_path / "tiny.engine").exists()


def test_names_that_are_refused(rtx: Any, tmp_path: Path) -> None:
    source = builders.write_checkpoint(tmp_path / "source", builders.PLAIN)
    with pytest.raises(InputError, match=r"ends in \.engine; call it tiny\.plan\.engine"):
        pipeline.build(source, tmp_path / "tiny.plan", **RTX)
    (tmp_path / "mine.engine").write_text("not ours")
    with pytest.raises(InputError, match="was not made by this tool"):
        pipeline.build(source, tmp_path / "mine.engine", **RTX, overwrite=True)
    assert (tmp_path / "mine.engine").read_text() == "not ours"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = builders.write_checkpoint(tmp_path / "source", builders.PLAIN)
    absent = replace(engine_backends.TENSORRT_RTX, module="tensorrt_that_is_absent")
    monkeypatch.setitem(engine_backends.BACKENDS, "tensorrt-rtx", absent)
    with pytest.raises(InputError, match=r"not installed; run: pip install 'ultramem-deploy\[tensorrt-rtx\]'"):
        pipeline.build(source, tmp_path / "tiny.engine", **RTX)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_tensorrt_itself_wants_a_gpu(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = builders.write_checkpoint(tmp_path / "source", builders.PLAIN)
    monkeypatch.setitem(engine_backends.BACKENDS, "tensorrt", replace(engine_backends.TENSORRT, module="tensorrt_rtx"))
    with pytest.raises(InputError, match="no NVIDIA GPU or driver on this machine.*or use --backend tensorrt-rtx"):
        pipeline.build(source, tmp_path / "tiny.engine", **RTX | {"backend": "tensorrt"})


def test_the_parser_s_complaint_is_told(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramem_deploy.converters.engine import stage

    def unknown(model: Any) -> Any:
        model.graph.node[0].op_type = "Teleport"
        return model

    monkeypatch.setattr(stage, "inline_operators", unknown)
    with pytest.raises(InputError, match=r"tiny\.engine: TensorRT .* cannot parse it at node .*Teleport"):
        built(builders.PLAIN)
