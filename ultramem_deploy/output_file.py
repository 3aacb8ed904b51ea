"""Files that a long command writes at its end: whether they can be written is asked before it begins."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from .errors import InputError


def check_file(path: Path, option: str) -> None:
    """InputError where no file can be made at `path`; directories that are not there yet can be."""
    if path.is_dir():
        raise InputError(f"{option}: {path}: is a directory; expected the name of a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{option}: {path.parent}: no such directory")
    if not os.access(above, os.W_OK):
        raise InputError(f"{option}: {path}: {above} cannot be written to; choose another directory")


def check_picture(path: Path) -> None:
    """InputError where --plot could not draw a PNG."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot: needs matplotlib: pip install 'ultramem-deploy[plot]'")
    check_file(path, "--plot")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot: {path.parent}: no such directory")
