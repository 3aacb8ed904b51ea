"""Convert, fold, export and run UltraMem models.

    import ultramem_deploy as um
    um.convert("SmolLM2-135M", "canonical"); model = um.load("canonical"); logits = model(input_ids)

Importing this package is cheap: torch, onnx and onnxruntime are imported when a function needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cookbook.running import run
    from .errors import CheckFailed, ConfigError, InputError, UltraMemError
    from .inspection import inspect
    from .model.loading import load
    from .pipeline import (
        build,
        bundle,
        check_bundle,
        convert,
        diff,
        export,
        fold,
        generate,
        heal,
        patch,
        plan,
        profile,
        quantize,
        triton_repository,
        upcycle,
        verify,
    )
    from .spec import ModelSpec

_WHERE = {
    "CheckFailed": "errors",
    "ConfigError": "errors",
    "InputError": "errors",
    "ModelSpec": "spec",
    "UltraMemError": "errors",
    "build": "pipeline",
    "bundle": "pipeline",
    "check_bundle": "pipeline",
    "convert": "pipeline",
    "diff": "pipeline",
    "export": "pipeline",
    "fold": "pipeline",
    "generate": "pipeline",
    "heal": "pipeline",
    "inspect": "inspection",
    "load": "model.loading",
    "patch": "pipeline",
    "plan": "pipeline",
    "profile": "pipeline",
    "quantize": "pipeline",
    "run": "cookbook.running",
    "triton_repository": "pipeline",
    "upcycle": "pipeline",
    "verify": "pipeline",
}

__all__ = [
    "CheckFailed",
    "ConfigError",
    "InputError",
    "ModelSpec",
    "UltraMemError",
    "build",
    "bundle",
    "check_bundle",
    "convert",
    "diff",
    "export",
    "fold",
    "generate",
    "heal",
    "inspect",
    "load",
    "patch",
    "plan",
    "profile",
    "quantize",
    "run",
    "triton_repository",
    "upcycle",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
