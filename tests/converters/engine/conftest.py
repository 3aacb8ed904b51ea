"""Portable bundles as `build` makes them, and the TensorRT that builds without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import builders
from ultramem_deploy import pipeline
from ultramem_deploy.spec import ModelSpec


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The module; tests that build are skipped where it is not installed."""
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx-cu13")


@pytest.fixture
def built(rtx: Any, tmp_path: Path) -> Any:
    """built(spec, stored, name, **options): the engine's path and what `build` returned, for a random model."""

    def build(
        spec: ModelSpec, stored: str = "float32", name: str = "tiny", **options: Any
    ) -> tuple[Path, dict[str, Any]]:
        source = builders.write_checkpoint(tmp_path / f"{name}-source", spec, dtype=stored)
        out = tmp_path / f"{name}.engine"
        return out, pipeline.build(source, out, **{"backend": "tensorrt-rtx", "shapes": "1x1,1x8,2x16", **options})

    return build
