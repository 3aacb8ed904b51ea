"""TensorRT's own plugin registry, in its lean runtime (no GPU needed), loads the library and makes the plugins."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ultramem_deploy.ops import DOMAIN, OPERATORS, VERSION, Operator

MODULES = ("tensorrt", "tensorrt_lean_bindings")
MISSING = "TensorRT's runtime is not installed: pip install tensorrt-lean-cu13-libs tensorrt-lean-cu13-bindings"


def runtime() -> ModuleType | None:
    """The Python module of whichever TensorRT runtime is here, the full one first, or None."""
    for name in MODULES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if hasattr(module, "get_plugin_registry"):
                return module
    return None


def creators(trt: ModuleType, library: Path) -> list[str]:
    """Names of the operators whose plugins the registry finds and creates, and refuses to create from wrong fields.

    Raises OSError where the registry does not load the library.
    """
    with _quiet_native_stderr():
        registry = trt.get_plugin_registry()
        if registry.load_library(str(library)) is None:
            raise OSError(f"TensorRT {trt.__version__} does not load {library}")
        return [operator.name for operator in OPERATORS if _works(trt, registry, operator)]


def create(trt: ModuleType, creator: Any, fields: dict[str, Any], phase: str = "BUILD") -> Any:
    """A plugin with these fields, or None where the creator refuses them."""
    given = [trt.PluginField(name, array, _field_type(trt, array)) for name, array in fields.items()]
    return creator.create_plugin("node", trt.PluginFieldCollection(given), getattr(trt.TensorRTPhase, phase))


def good_fields(operator: Operator) -> dict[str, Any]:
    """Every attribute as one int64."""
    return {attribute.name: np.array([attribute.default or 1], np.int64) for attribute in operator.attributes}


def field_names(operator: Operator) -> set[str]:
    """Of attributes, and of tables that a plugin may bring itself."""
    own = {port.name for port in operator.inputs if port.name in ("table", "scales")}
    return own | {attribute.name for attribute in operator.attributes}


def _works(trt: ModuleType, registry: Any, operator: Operator) -> bool:
    creator = registry.get_creator(operator.name, str(VERSION), DOMAIN)
    if creator is None or {field.name for field in creator.field_names} != field_names(operator):
        return False
    good = good_fields(operator)
    first = next(iter(good))
    wrong: list[dict[str, Any]] = [
        {**good, "no_such_field": np.array([1], np.int64)},
        {**good, first: np.array([1.0], np.float32)},
        {**good, first: np.array([-1], np.int64)},
        {**good, first: np.array([1, 1], np.int64)},
    ]
    made = all(create(trt, creator, good, phase) is not None for phase in ("BUILD", "RUNTIME"))
    return made and all(create(trt, creator, fields) is None for fields in wrong)


def _field_type(trt: ModuleType, array: Any) -> Any:
    known = {"int64": trt.PluginFieldType.INT64, "int8": trt.PluginFieldType.CHAR}
    return known.get(array.dtype.name, trt.PluginFieldType.FLOAT32)


@contextlib.contextmanager
def _quiet_native_stderr() -> Iterator[None]:
    """Drops what native code prints meanwhile: the lean runtime's own plugins complain where there is no driver."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
