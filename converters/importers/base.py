"""What an importer is: it recognises a source and says, tensor by tensor, how the canonical model is read from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ultramem_deploy.checkpoint import Checkpoint, TensorInfo
from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError
from ultramem_deploy.spec import ModelSpec, read_json
from ultramem_deploy.yaml_file import read_yaml

CONFIG_NAME = "config.json"
YAML_NAME = "config.yaml"
PARAMS_NAME = "params.json"
_WITH_YAML_TOO = ("hf_olmo",)
"""Values of model_type in `config.json` beside which a training run's own `config.yaml` says more."""


class Source:
    """A model as somebody else saved it: a directory with the file `config_name`, or a GGUF file."""

    def __init__(
        self, path: Path, config: dict[str, Any], gguf: Path | None = None, config_name: str = CONFIG_NAME
    ) -> None:
        self.path, self.config, self.gguf, self.config_name = path, config, gguf, config_name

    @property
    def directory(self) -> Path:
        """Where companions of the weights lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def where(self) -> str:
        """How messages about the configuration name it."""
        return str(self.gguf or self.path / self.config_name)

    @property
    def model_type(self) -> str:
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""

    @property
    def architectures(self) -> tuple[str, ...]:
        value = self.config.get("architectures")
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The safetensors files, headers read. Raises InputError where they are missing or damaged."""
        pickled = [file.name for ending in ("bin", "pt", "pth") for file in self.path.glob(f"*.{ending}")]
        if pickled and not any(self.path.glob("*.safetensors")):
            raise InputError(
                f"{self.path}: holds pickled weights ({sorted(pickled)[0]}) and no .safetensors file; pickles can run"
                " code: load the model with transformers and save it again with save_pretrained"
            )
        return Checkpoint.open(self.path)

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        if self.gguf is not None:
            return (self.gguf,)
        if self.config_name == CONFIG_NAME:
            return self.checkpoint.files
        from .training_weights import open_weights

        return open_weights(self.path).files


def open_source(path: Path) -> Source:
    """A directory with `config.json`, `config.yaml` or `params.json`, or a .gguf file. Raises InputError.

    A directory without any of these may hold exactly one .gguf file.
    """
    if path.is_file() and path.suffix == ".gguf":
        return Source(path, {}, path)
    if not path.is_dir():
        state = "is a file of another kind" if path.exists() else "does not exist"
        raise InputError(f"{path}: expected a model directory or a .gguf file; it {state}")
    found = _configured(path)
    if found is not None:
        return found
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return Source(path, {}, files[0])
    if files:
        names = ", ".join(file.name for file in files[:4])
        raise InputError(f"{path}: holds {len(files)} .gguf files ({names}); name the one to import")
    raise InputError(
        f"{path}: holds neither {CONFIG_NAME} nor a .gguf file, nor {YAML_NAME} or {PARAMS_NAME} of a training run;"
        " expected a model directory"
    )


def _configured(path: Path) -> Source | None:
    """The source whose configuration lies in the directory `path`; None where there is none."""
    config = read_json(path / CONFIG_NAME) if (path / CONFIG_NAME).exists() else None
    if config is not None and not ((path / YAML_NAME).exists() and config.get("model_type") in _WITH_YAML_TOO):
        return Source(path, config)
    if (path / YAML_NAME).exists():
        return Source(path, read_yaml(path / YAML_NAME), config_name=YAML_NAME)
    if (path / PARAMS_NAME).exists():
        return Source(path, read_json(path / PARAMS_NAME), config_name=PARAMS_NAME)
    return None


@dataclass(frozen=True)
class SourceTensor:
    """One tensor to be, and how to get it. `rows(start, stop)` gives first-axis rows in `dtype`, from any thread.

    `stored` is set where the bytes lie in a safetensors file just so, which can then be linked instead of rewritten.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[int, int], np.ndarray[Any, Any]]
    stored: TensorInfo | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> SourceTensor:
        """Tensor `name` of a safetensors checkpoint, as it is."""
        info = checkpoint.info(name)
        return cls(name, info.shape, info.dtype, lambda start, stop: checkpoint.read_rows(name, start, stop), info)


@dataclass(frozen=True)
class ImportPlan:
    """All that is known before any tensor is read. `tensors` is keyed by canonical name.

    `write_companions` makes further companion files in the empty directory it is given (tokenizers inside a GGUF).
    """

    family: str
    spec: ModelSpec
    tensors: dict[str, SourceTensor]
    warnings: list[str] = field(default_factory=list)
    companions: list[Path] = field(default_factory=list)
    write_companions: Callable[[Path], None] | None = None


class Importer(ABC):
    """One family of source checkpoints."""

    family: str
    recognises: tuple[str, ...] = ()
    """What a message lists as supported: architectures as `config.json` names them, or a file format."""
    reads_gguf: bool = False
    config_name: str = CONFIG_NAME
    """The file that holds the configurations this family has."""

    @abstractmethod
    def detect(self, source: Source) -> bool:
        """Whether the source's metadata names this family. Never raises for another family's source."""

    @abstractmethod
    def plan(self, source: Source) -> ImportPlan:
        """Headers and configuration only. Raises ConfigError with all configuration problems, or InputError."""

    def near_miss(self, source: Source) -> str | None:
        """What does not fit, for a source that is almost of this family; None when it is not even close."""
        return None


def described(source: Source) -> str:
    """The architecture that a source claims, for messages."""
    names = ", ".join(source.architectures)
    return f"architectures {shown(names)}, model_type {shown(source.model_type)}"
