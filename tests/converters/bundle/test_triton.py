"""The model repository for Triton: its layout, its configuration against the graph, and that the model in it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests import builders
from ultramem_deploy import triton_repository
from ultramem_deploy.converters.bundle import make_triton
from ultramem_deploy.converters.onnx import export_onnx
from ultramem_deploy.errors import InputError
from ultramem_deploy.runtime.ort import OrtRunner
from ultramem_deploy.spec import ModelSpec

PORT = re.compile(r'^(input|output) \{ name: "([^"]+)" data_type: TYPE_(\w+) dims: \[ ([-\d, ]+) \] \}$', re.MULTILINE)
TYPES = {"FP32": "tensor(float)", "INT64": "tensor(int64)"}


def repository(tmp_path: Path, spec: ModelSpec, backend: str = "onnxruntime") -> Path:
    export_onnx(builders.write_checkpoint(tmp_path / "checkpoint", spec), tmp_path / "onnx")
    make_triton(tmp_path / "onnx", tmp_path / "models", backend=backend)
    return tmp_path / "models"


def test_layout(tmp_path: Path) -> None:
    models = repository(tmp_path, builders.V1)
    files = sorted(file.relative_to(models).as_posix() for file in models.rglob("*") if file.is_file())
    assert files == [
        "provenance.json", "ultramem/1/libultramem_ort.so", "ultramem/1/model-decoder.safetensors",
        "ultramem/1/model-export.safetensors", "ultramem/1/model-memory.safetensors", "ultramem/1/model.onnx",
        "ultramem/config.pbtxt",
    ]  # fmt: skip
    shard = "model-memory.safetensors"
    assert (models / "ultramem/1" / shard).stat().st_ino == (tmp_path / "onnx" / shard).stat().st_ino
    assert triton_repository(tmp_path / "onnx", models)["up_to_date"]
    plain = (repository(tmp_path / "plain", builders.PLAIN) / "ultramem/config.pbtxt").read_text()
    assert "op_library_filename" not in plain


def test_configuration_is_the_graphs_own(tmp_path: Path) -> None:
    """Names, types and shapes as ONNX Runtime itself reports them for the model in the repository, batch apart."""
    models = repository(tmp_path, builders.V1)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(models / "ultramem/1/libultramem_ort.so"))
    session = ort.InferenceSession(str(models / "ultramem/1/model.onnx"), options, providers=["CPUExecutionProvider"])
    config = (models / "ultramem/config.pbtxt").read_text()
    found = [(kind, name, TYPES[kind_of], [int(d) for d in dims.split(",")]) for kind, name, kind_of, dims in
             PORT.findall(config)]  # fmt: skip
    expected = [
        (kind, port.name, port.type, [size if isinstance(size, int) else -1 for size in port.shape[1:]])
        for kind, ports in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for port in ports
    ]
    assert found == expected and 'backend: "onnxruntime"' in config and "dynamic_batching" in config
    ids = np.arange(6).reshape(2, 3)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds |= {p.name: np.zeros((2, 2, 0, 16), np.float32) for p in session.get_inputs() if p.name not in feeds}
    logits = session.run(["logits"], feeds)[0]
    np.testing.assert_allclose(
        logits, OrtRunner(tmp_path / "onnx").logits(ids), atol=1e-5
    )  # float32, another batch path


def test_refusals(tmp_path: Path) -> None:
    checkpoint = builders.write_checkpoint(tmp_path / "checkpoint", builders.PLAIN)
    with pytest.raises(InputError, match="a checkpoint, not an export"):
        make_triton(checkpoint, tmp_path / "models")
    with pytest.raises(InputError, match="backend: expected one of onnxruntime, python, tensorrt, found 'torch'"):
        make_triton(checkpoint, tmp_path / "models", backend="torch")


def server_module() -> ModuleType:
    """What the server gives to a Python model, as plain records."""

    def tensor(name: str, array: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(name=name, as_numpy=lambda: array)

    def response(output_tensors: list[Any] | None = None, error: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(outputs={one.name: one.as_numpy() for one in output_tensors or []}, error=error)

    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = tensor, response, str
    module.get_input_tensor_by_name = lambda request, name: tensor(name, request[name])
    return module


def feeds(ids: list[list[int]], heads: int = 2) -> dict[str, np.ndarray]:
    """Inputs of `builders.V1`, nothing in its caches."""
    tokens = np.array(ids)
    caches = [f"past_key_values.{block}.{part}" for block in range(2) for part in ("key", "value")]
    empty = np.zeros((len(ids), heads, 0, 16), np.float32)
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)} | dict.fromkeys(caches, empty)


def test_the_python_backends_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of one shape run as a batch, others apart, a bad one answers with ONNX Runtime's error."""
    models = repository(tmp_path, builders.V1, "python")
    config = (models / "ultramem/config.pbtxt").read_text()
    assert 'backend: "python"' in config and "op_library_filename" not in config
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server_module())
    loading = importlib.util.spec_from_file_location("model", models / "ultramem/1/model.py")
    assert loading is not None and loading.loader is not None
    module = importlib.util.module_from_spec(loading)
    loading.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(models / "ultramem"), "model_version": "1"})
    asked = [[[5, 6, 7]], [[8, 9]], [[1, 2, 3], [4, 5, 6]]]
    answers = model.execute([*(feeds(ids) for ids in asked), feeds([[1]], heads=3)])
    runner = OrtRunner(tmp_path / "onnx")
    for ids, answer in zip(asked, answers, strict=False):
        # float32 sums of another batch.
        np.testing.assert_allclose(answer.outputs["logits"], runner.logits(np.array(ids)), atol=1e-5)
        assert answer.outputs["present.0.key"].shape == (len(ids), 2, len(ids[0]), 16)
    assert "Got invalid dimensions for input: past_key_values" in answers[3].error


@pytest.fixture
def triton() -> Path:
    """The site-packages of a Python that has PyTriton (`make check-triton-server`)."""
    prefix = os.environ.get("ULTRAMEM_TRITON_SERVER")
    if not prefix:
        pytest.skip("the server is run by `make check-triton-server`")
    return next(Path(prefix).absolute().glob("lib/python3*/site-packages"))


def test_a_real_server_serves_the_repository(triton: Path, tmp_path: Path) -> None:
    """PyTriton's server, its Python backend, over HTTP: a prompt, then a token with the caches that came back."""
    models = repository(tmp_path, builders.V1, "python")
    with serving(triton, models, tmp_path) as address:
        first = infer(address, feeds([[5, 6, 7]]))
        caches = {n.replace("present", "past_key_values"): v for n, v in first.items() if n.startswith("present")}
        second = infer(address, {"input_ids": np.array([[9]]), "attention_mask": np.ones((1, 4), np.int64)} | caches)
    expected = OrtRunner(tmp_path / "onnx").logits(np.array([[5, 6, 7, 9]]))
    # float32, printed as JSON and read again; one token at a time sums in another order.
    np.testing.assert_allclose(first["logits"], expected[:, :3], atol=1e-4)
    np.testing.assert_allclose(second["logits"], expected[:, 3:], atol=1e-4)


def test_a_real_server_accepts_the_configuration(triton: Path, tmp_path: Path) -> None:
    """Of the onnxruntime backend, which PyTriton does not bring: all that it finds wrong is that it is missing."""
    models = repository(tmp_path, builders.V1)
    said = subprocess.run(server(triton, models, tmp_path, 0), env=environment(triton), capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    errors = [line for line in said.stderr.splitlines() if "failed to load 'ultramem' version 1" in line]
    assert len(errors) == 1 and "unable to find backend library for backend 'onnxruntime'" in errors[0]


def server(packages: Path, models: Path, tmp_path: Path, port: int) -> list[str]:
    home, backends = packages / "pytriton/tritonserver", tmp_path / "backends"
    if not backends.exists():
        shutil.copytree(home / "backends", backends)
        stub = (
            home / "python_backend_stubs" / packages.parent.name.removeprefix("python") / "triton_python_backend_stub"
        )
        shutil.copy(stub, backends / "python")
        stub.chmod(0o755)
    (home / "bin/tritonserver").chmod(0o755)
    switches = ["--allow-metrics", "false", "--allow-grpc", "false", "--http-address", "127.0.0.1"]
    return [str(home / "bin/tritonserver"), "--model-repository", str(models), "--backend-directory", str(backends),
            "--http-port", str(port), *switches]  # fmt: skip


def environment(packages: Path) -> dict[str, str]:
    """The stub embeds the Python that is first on PATH."""
    libraries = [packages / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    found = {"LD_LIBRARY_PATH": libraries, "PATH": [packages.parents[2] / "bin", os.environ["PATH"]]}
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return rest | {name: os.pathsep.join(map(str, paths)) for name, paths in found.items()}


@contextmanager
def serving(packages: Path, models: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"http://127.0.0.1:{port}/v2"
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            server(packages, models, tmp_path, port), env=environment(packages), stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 60
        while not is_ready(address):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def infer(address: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kinds = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": kinds[a.dtype.name], "data": a.reshape(-1).tolist()}
        for n, a in arrays.items()
    ]
    request = urllib.request.Request(f"{address}/models/ultramem/infer", json.dumps({"inputs": inputs}).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from None
    return {one["name"]: np.array(one["data"], np.float32).reshape(one["shape"]) for one in outputs}
