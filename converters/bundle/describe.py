"""What bundles of every runtime are described by: hashes of their files, progress, receipt; tokenizer files linked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...checkpoint import Stage
from ...checkpoint.companions import companion_files
from ...checkpoint.files import files_below, sha256_file
from ...checkpoint.partial import STATE_NAMES
from ...spec import read_json
from .genai import tokenizer_config

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def link_companions(stage: Stage, src: Path) -> None:
    """Tokenizer files and the like, the tokenizer's class under a name that every runtime knows."""
    companions = {file.name: file for file in companion_files(src)}
    given = companions.pop(TOKENIZER_CONFIG, None)
    if given or TOKENIZER in companions:
        stage.write_json(TOKENIZER_CONFIG, tokenizer_config(read_json(given) if given else {}))
    for file in companions.values():
        stage.link_file(file)


def counted(stage: Stage, total: int) -> Callable[[int, str], None]:
    """Tells the stage's progress of bytes done, of `total`."""
    done = 0

    def advance(count: int, what: str) -> None:
        nonlocal done
        done += count
        if stage.progress is not None:
            stage.progress(done, total, what)

    return advance


def file_entries(stage: Stage, hashes: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file; those linked have the hashes that their source's record gives."""
    entries = {}
    for name in files_below(stage.workdir):
        if name not in STATE_NAMES:
            file = stage.workdir / name
            known = hashes.get(name) if name in stage.linked else None
            entries[name] = {"size": file.stat().st_size, "sha256": known or sha256_file(file)}
    return entries


def receipt(document: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """What the stage tells of a bundle with this manifest."""
    return {
        "runtime": document["runtime"],
        "schema": document["schema"],
        "requires": document["requires"],
        "plugins": document["plugins"],
        "tables": len(document["tables"]),
        "table_bytes": sum(table["bytes"] for table in document["tables"]),
        "tokenizer": bool(document["tokenizer"]),
        "weights": {name: stage.linked[name] for name in sorted(stage.linked) if name.endswith(".safetensors")},
    }
