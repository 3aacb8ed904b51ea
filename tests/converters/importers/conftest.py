"""A Llama source that each test changes as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from .sources import Shapes, family_config, llama_shapes, random_tensors, write_source


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., Path]:
    """Write a Llama source under tmp_path/"source"; keywords change its config."""

    def make(*, shards: int = 1, drop: Sequence[str] = (), add: Shapes | None = None, **changes: Any) -> Path:
        shapes = {n: s for n, s in llama_shapes().items() if n not in drop} | (add or {})
        return write_source(tmp_path / "source", family_config("llama", **changes), random_tensors(shapes), shards)

    return make
