"""What an output holds so far: every file with its size and hash, every tensor with its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint.files import files_below, sha256_file
from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.checkpoint.partial import STATE_NAMES
from ultramem_deploy.checkpoint.provenance import PROVENANCE_NAME
from ultramem_deploy.errors import InputError


class Contents:
    """`files`: name -> {"size", "sha256"}. `weight_map`: tensor name -> file name."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.weight_map: dict[str, str] = {}
        self._tensor_bytes = 0

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Note a finished file."""
        self.files[name] = {"size": record["size"], "sha256": record["sha256"]}

    def require_new(self, tensor: str) -> None:
        """InputError where a file holds the tensor already."""
        if tensor in self.weight_map:
            raise InputError(f"tensor {shown(tensor)} would be written twice: {self.weight_map[tensor]} holds it")

    def place(self, sizes: Mapping[str, int], file: str) -> None:
        """Note which tensors, and how many bytes of each, a file holds."""
        for name, nbytes in sizes.items():
            if self.weight_map.get(name) != file:
                self.require_new(name)
                self.weight_map[name] = file
                self._tensor_bytes += nbytes

    def index(self) -> dict[str, Any]:
        """The Hugging Face index document."""
        return {"metadata": {"total_size": self._tensor_bytes}, "weight_map": self.weight_map}

    def described(self, directory: Path) -> dict[str, dict[str, Any]]:
        """Size and hash of every file in `directory`; those that a stage's body wrote by itself are hashed now."""
        result: dict[str, dict[str, Any]] = {}
        for name in files_below(directory):
            if name not in (*STATE_NAMES, PROVENANCE_NAME):
                file = directory / name
                result[name] = self.files.get(name) or {"size": file.stat().st_size, "sha256": sha256_file(file)}
        return result
