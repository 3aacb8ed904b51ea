"""What lies at a stage's output before it starts: its own finished work, something to refuse or to replace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint.files import sha256_file
from ultramem_deploy.checkpoint.partial import difference
from ultramem_deploy.checkpoint.pending import PendingSource
from ultramem_deploy.checkpoint.provenance import CHEAP, SourceRecord, fingerprint, read_provenance
from ultramem_deploy.errors import InputError


def check_sources(out: Path, sources: Iterable[SourceRecord | PendingSource]) -> None:
    """InputError when a source lies in `out`, or `out` in a source's directory: a stage never changes its input."""
    for one in sources:
        if one.path is not None and one.path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds the source {one.name}, which must stay as it is; choose another output")
        if one.path is not None:
            check_outside(out, one.path)


def check_outside(out: Path, source: Path) -> None:
    """InputError when `source` is a directory and `out` lies below it."""
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise InputError(f"{out}: lies in the source {source.name}, which must stay as it is; choose another output")


def check_elsewhere(out: Path) -> None:
    """InputError when this process, and so the shell that started it, works in `out`: its directory is replaced."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(f"{out}: is the current directory, which the output would replace; run it from another one")


def is_made(out: Path, parts: dict[str, Any], overwrite: bool) -> bool:
    """Whether `out` is what a stage with fingerprint `parts` would make; False when it is free or may be replaced.

    InputError when something else is there. What this tool did not make is never replaced, even with `overwrite`.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: exists and is not a directory; choose another output")
    if not os.listdir(out):
        return False
    made = read_provenance(out)
    if made is None:
        raise InputError(
            f"{out}: exists and was not made by this tool; choose another directory, or remove it yourself"
        )
    problem = f"it was made otherwise: {difference(_parts_of(made), parts)}"
    if made["fingerprint"] == fingerprint(parts):
        problem = _damage(out, made["files"])
    if problem and not overwrite:
        raise InputError(f"{out}: exists, and {problem}; use --overwrite or another directory")
    return not problem


def _damage(out: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    for name, entry in files.items():
        file = out / name
        size = file.stat().st_size if file.is_file() else -1
        # An edit may keep the length; what people edit is small enough to be hashed.
        if size != entry["size"] or (size <= CHEAP and sha256_file(file) != entry["sha256"]):
            return f"its file {name} is missing or changed since"
    return ""


def _parts_of(made: Mapping[str, Any]) -> dict[str, Any]:
    source = made.get("source")
    sources = source if isinstance(source, list) else [source]
    return {
        "stage": made["stage"],
        "source": [one.get("fingerprint") for one in sources if isinstance(one, dict)],
        "options": made["options"],
        "shard size": made.get("max_shard_bytes"),
        "tool version": made["tool"].get("version"),
    }
