"""Checkpoints and bundles of the tested configurations, each made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests import builders
from tests.converters.onnx.cases import MODELS
from ultramem_deploy.converters.onnx import export_onnx

Exported = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """(case, target, dtype) -> the checkpoint's directory and the bundle's."""

    @cache
    def checkpoint(case: str, dtype: str) -> Path:
        return builders.write_checkpoint(tmp_path_factory.mktemp(case) / "checkpoint", MODELS[case], dtype=dtype)

    @cache
    def make(case: str, target: str, dtype: str = "float32", copy: bool = False) -> tuple[Path, Path]:
        source = checkpoint(case, dtype)
        bundle = source.parent / f"{target}-{copy}"
        export_onnx(source, bundle, target=target, copy=copy)
        return source, bundle

    return make
