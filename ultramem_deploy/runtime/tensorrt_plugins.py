"""What only `tensorrt` has: operators as plugins of our library."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..ops import DOMAIN, OPERATORS, VERSION


def load_plugins(trt: Any, library: Path | None) -> None:
    """Register the creators of `library` (None: of those that are loaded already) with TensorRT.

    Raises InputError where an operator has no plugin of this release's version.
    """
    registry = trt.get_plugin_registry()
    if library is not None:
        registry.load_library(str(library))
    for operator in OPERATORS:
        if registry.get_creator(operator.name, str(VERSION), DOMAIN) is None:
            raise InputError(
                f"{library or 'the engine'}: offers TensorRT {trt.__version__} no plugin {operator.name} version "
                f"{VERSION} in {DOMAIN}; build the library of this release with `make plugins`"
            )


def add_tables(library: Path, folder: Path) -> None:
    """Let plugins whose tables are resources look for them in `folder`, before those that were named earlier."""
    ctypes.CDLL(str(library)).ultramem_add_tables(os.fsencode(folder))
