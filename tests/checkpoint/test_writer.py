from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramem_deploy.checkpoint import TensorTask
from ultramem_deploy.checkpoint.writer import chunk_elements, chunk_grid, plan_shards
from ultramem_deploy.errors import InputError


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=3), st.sampled_from(["int8", "float16", "float32", "int64"]))
def test_chunks_tile_the_rows(shape: list[int], dtype: str) -> None:
    itemsize = np.dtype(dtype).itemsize
    grid = chunk_grid(tuple(shape), itemsize)
    rows = shape[0] if shape else 1
    largest = max(((stop - start) * math.prod(shape[1:]) for start, stop in grid), default=0)
    assert chunk_elements(tuple(shape), dtype) == largest
    if 0 in shape:
        assert grid == []
        return
    assert grid[0][0] == 0 and grid[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(grid))
    row_bytes = math.prod(shape[1:]) * itemsize
    assert all(start < stop and (stop - start) * row_bytes <= max(row_bytes, 16 << 20) for start, stop in grid)


def test_the_chunk_of_an_impossible_tensor_is_known_at_once() -> None:
    """Sizes by mistake have to be refused, not listed chunk by chunk."""
    assert chunk_elements((10**30, 64), "float32") == (16 << 20) // 4


def test_plan_is_deterministic_and_never_splits() -> None:
    tasks = [TensorTask.of(name, np.zeros((10, 10), np.float32)) for name in "dbca"]
    assert [shard.file for shard in plan_shards(tasks, "values", 1 << 20)] == ["model-values.safetensors"]
    shards = plan_shards(tasks, "values", 900)
    assert [shard.file for shard in shards] == [f"model-values-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    assert [[task.name for task in shard.tasks] for shard in shards] == [["a", "b"], ["c", "d"]]
    assert [len(shard.tasks) for shard in plan_shards(tasks, "values", 10)] == [1, 1, 1, 1]
    assert plan_shards([], "values", 10) == []
    with pytest.raises(InputError, match="'a' would be written twice"):
        plan_shards([tasks[-1], tasks[-1]], "values", 1 << 20)
