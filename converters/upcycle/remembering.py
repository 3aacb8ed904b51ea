"""What was fitted, kept beside an unfinished output for the run that goes on after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from ultramem_deploy.checkpoint.files import write_atomic


def remembered(file: Path, fit: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """What `fit` finds, or what it found before the interruption, in `file`.

    Another number of threads adds up in another order and near ties then fall otherwise: shards that were finished
    before and shards written now would hold different fits.
    """
    if file.is_file():
        return load_file(file)
    found = {name: np.ascontiguousarray(array) for name, array in fit().items()}
    write_atomic(file, save(found))
    return found
