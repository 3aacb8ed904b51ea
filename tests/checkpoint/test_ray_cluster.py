"""A Ray cluster of two nodes on this machine computes what threads compute. Skipped without the extra `ray`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import builders as b
from tests.conftest import Written
from tests.test_memory_budget import wide
from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.chunks import Threads
from ultramem_deploy.checkpoint.executors import open_crew
from ultramem_deploy.checkpoint.shard_file import write_shard
from ultramem_deploy.errors import InputError
from ultramem_deploy.pipeline import convert, fold


def test_without_ray_a_stage_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    source = b.write_checkpoint(tmp_path / "source", b.V1)
    with pytest.raises(InputError, match="Ray is not installed"):
        convert(source, tmp_path / "out", dtype="bfloat16", executor="ray")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(InputError, match=r"Ray is not installed; pip install 'ultramem-deploy\[ray\]'"),
        open_crew("ray", [TensorTask("a", "float32", (1, 1024), _plain)], 2),
    ):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    # A folder called ray somewhere on the path is a namespace package, too.
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    nodes.add_node(**{key: value for key, value in node.items() if key != "include_dashboard"})
    ray.init(address=nodes.address, log_to_driver=False)
    yield
    ray.shutdown()
    nodes.shutdown()


def numbers(folder: Path) -> TensorTask:
    """A tensor of eight chunks; whoever computes one leaves the name of its node in `folder`."""

    def rows(start: int, stop: int) -> np.ndarray[Any, Any]:
        import ray

        if ray.is_initialized():
            (folder / ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.5)  # so that one node cannot do it all before the other has begun
        return np.arange(start * 1024, stop * 1024, dtype=np.float32).reshape(-1, 1024)

    return TensorTask("a", "float32", (8 * 4096, 1024), rows)


@pytest.mark.usefixtures("cluster")
def test_two_nodes_write_what_threads_write(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    tasks = [numbers(seen), TensorTask.of("b", np.arange(7))]
    with open_crew("ray", tasks, 2, budget=64 << 20) as crew:
        found, _ = write_shard(tmp_path / "ray.safetensors", tasks, crew)
    assert len(list(seen.iterdir())) == 2, "one node did all the work"
    plain = TensorTask("a", "float32", (8 * 4096, 1024), _plain)
    assert found == write_shard(tmp_path / "threads.safetensors", [plain, tasks[1]], Threads(2))[0]


def _plain(start: int, stop: int) -> np.ndarray[Any, Any]:
    return np.arange(start * 1024, stop * 1024, dtype=np.float32).reshape(-1, 1024)


@pytest.mark.usefixtures("cluster")
def test_convert_and_fold(written: Written, tmp_path: Path) -> None:
    source = written(wide(32 * 32))
    for executor in ("threads", "ray"):
        fold(source, tmp_path / executor, executor=executor)
        convert(source, tmp_path / f"{executor}-converted", dtype="float16", executor=executor)
    for suffix in ("", "-converted"):
        for file in (tmp_path / f"threads{suffix}").iterdir():
            assert file.read_bytes() == (tmp_path / f"ray{suffix}" / file.name).read_bytes(), file.name


@pytest.mark.usefixtures("cluster")
def test_an_error_is_the_tasks_own(tmp_path: Path) -> None:
    def refuse(start: int, stop: int) -> np.ndarray[Any, Any]:
        raise InputError("tensor 'a': is wrong")

    tasks = [TensorTask("a", "float32", (10, 10), refuse)]
    with pytest.raises(InputError, match="^tensor 'a': is wrong$"), open_crew("ray", tasks, 2) as crew:
        write_shard(tmp_path / "x.safetensors", tasks, crew)
