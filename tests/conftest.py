"""What every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Triton reads it when a kernel is defined: in tests its kernels are interpreted, on the CPU; `make gpu` says 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

from tests import builders
from ultramem_deploy.checkpoint import Stage, TensorTask
from ultramem_deploy.spec import ModelSpec

# A shared machine stalls at times: a deadline would make the property tests fail by chance.
settings.register_profile("shared", deadline=None, derandomize=True)
settings.load_profile("shared")
# Tiny models gain nothing from threads, and test processes share the cores.
torch.set_num_threads(1)

Written = Callable[..., Path]


@contextmanager
def interrupted_before(group: str) -> Iterator[None]:
    """What runs here is interrupted as its stage comes to this group of tensors; raises where it is not."""
    write = Stage.write_tensors

    def stopped(stage: Stage, at: str, tasks: list[TensorTask]) -> None:
        if at == group:
            raise KeyboardInterrupt
        write(stage, at, tasks)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stage, "write_tensors", stopped)
        yield


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """written(spec, name="model", **options): a random checkpoint below tmp_path; options as `write_checkpoint`."""

    def write(spec: ModelSpec, name: str = "model", **options: Any) -> Path:
        return builders.write_checkpoint(tmp_path / name, spec, **options)

    return write
