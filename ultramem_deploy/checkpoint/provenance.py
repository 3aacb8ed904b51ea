"""Where an artifact came from: hashes of its sources, the stages behind it, what each proved. No dates, no paths."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultramem_deploy.checkpoint.files import sha256_file
from ultramem_deploy.checkpoint.header import label, shown, strict_json
from ultramem_deploy.checkpoint.index import inside
from ultramem_deploy.errors import InputError

PROVENANCE_NAME = "provenance.json"
_TOOL = "ultramem-deploy"
_FORMAT = 1
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin", ".gguf", ".distcp"}
_TEXTS = {".json", ".yaml", ".yml", ".txt", ".jinja", ".model"}
CHEAP = 1 << 20  # files this small are hashed anew rather than trusted: people edit configurations


@dataclass(frozen=True)
class SourceRecord:
    """What a stage read: `files` maps a relative name to {"size", "sha256"}; `fingerprint` depends on these alone.

    `kind` is "stage" (a directory one of our stages made), "directory" or "file". `chain` holds the stages behind it,
    the earliest first. `path` is where it lies now and never enters an artifact.
    """

    name: str
    kind: str
    files: dict[str, dict[str, Any]]
    fingerprint: str
    chain: tuple[dict[str, Any], ...] = ()
    path: Path | None = field(default=None, compare=False, repr=False)


def tool_version() -> str:
    """The installed version of this package, or "0.0.0+checkout" when it is not installed."""
    try:
        return importlib.metadata.version(_TOOL)
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0+checkout"


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8"
    )


def pretty_json(value: Any) -> bytes:
    """JSON as it is written to files: sorted, indented by two, a newline at the end."""
    return (json.dumps(plain(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8"
    )


def plain(value: Any) -> Any:
    """`value` in JSON's own types: numpy scalars and tuples converted, NaN and infinity spelled, paths cut to names.

    Bytes of a file's name that are no UTF-8 are spelled as well: "\\udcff".
    """
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return plain(value.name)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The provenance of the artifact directory `path`, or None when none of our stages made it.

    InputError when the file is damaged or a newer format than this version reads.
    """
    file = Path(path) / PROVENANCE_NAME
    if not file.is_file():
        return None
    try:
        document = strict_json(file.read_bytes(), str(file), "provenance")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    tool = document.get("tool")
    if not isinstance(tool, dict) or tool.get("name") != _TOOL:
        return None
    if document.get("format") != _FORMAT:
        raise InputError(
            f"{file}: format {shown(document.get('format'))}, this version reads {_FORMAT};"
            f" install {_TOOL} {label(tool.get('version'))}"
        )
    _check_fields(file, document)
    return document


def source_record(
    path: str | os.PathLike[str],
    jobs: int | None = None,
    weights: Sequence[Path] | None = None,
    *,
    edited: bool = False,
) -> SourceRecord:
    """Identify the file or directory `path` by the SHA-256 of what it holds (InputError when there is nothing to hash).

    `weights` names the files below a directory that hold its tensors, where the reader knows them: they and the texts
    at the top are hashed, nothing else (an optimizer's state, say). None takes every file that looks like a part.
    In a directory that one of our stages made, large files keep the hash recorded there as long as they have the
    recorded size and are no newer than the record; otherwise they are hashed again, and must still agree, unless the
    directory may have been `edited` (a fine-tuned copy).
    """
    where = Path(path)
    recorded = read_provenance(where) if where.is_dir() else None
    if recorded is not None:
        files = _recorded_files(where, recorded, edited)
        chain = (*recorded["lineage"], _own_stage(recorded))
        return SourceRecord(_basename(where), "stage", files, fingerprint(files), chain, where)
    root, names = source_files(where, weights)
    files = _hash(root, names, jobs)
    return SourceRecord(
        _basename(where), "directory" if where.is_dir() else "file", files, fingerprint(files), (), where
    )


def source_files(where: Path, weights: Sequence[Path] | None = None) -> tuple[Path, list[str]]:
    """What identifies a source that no stage of ours made: a directory, and the names of files below it.

    `weights` as for `source_record`. InputError when there is nothing to hash.
    """
    if where.is_dir():
        root, names = where, _relevant(where) if weights is None else _chosen(where, weights)
    elif where.is_file():
        root, names = where.parent, [where.name]
    else:
        raise InputError(f"{where}: no such file or directory")
    if not names:
        raise InputError(f"{where}: holds no checkpoint: no file ends in {', '.join(sorted(_WEIGHTS | _TEXTS))}")
    return root, names


def fingerprint(value: Any) -> str:
    """SHA-256 as hex of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def build_provenance(
    stage: str,
    options: Mapping[str, Any],
    sources: Sequence[SourceRecord],
    identity: str,
    max_shard_bytes: int,
    files: Mapping[str, Mapping[str, Any]],
    receipt: Mapping[str, Any],
) -> dict[str, Any]:
    """The document written as provenance.json; `source` is an object for one source, a list for several."""
    described = [
        {"name": one.name, "kind": one.kind, "fingerprint": one.fingerprint, "files": one.files} for one in sources
    ]
    lineage: list[dict[str, Any]] = []
    for one in sources:
        lineage.extend(entry for entry in one.chain if entry not in lineage)
    document = {
        "format": _FORMAT,
        "tool": {"name": _TOOL, "version": tool_version()},
        "stage": stage,
        "options": options,
        "max_shard_bytes": max_shard_bytes,
        "source": described[0] if len(described) == 1 else described,
        "fingerprint": identity,
        "files": files,
        "receipt": receipt,
        "lineage": lineage,
    }
    result: dict[str, Any] = plain(document)
    return result | {_RECEIPT_SHA256: fingerprint(result["receipt"])}


_RECEIPT_SHA256 = "receipt_sha256"
_STAGE_FIELDS: dict[str, type] = {"stage": str, "options": dict, "fingerprint": str, "tool": dict, "receipt": dict}


def _check_fields(file: Path, document: dict[str, Any]) -> None:
    for key, kind in (_STAGE_FIELDS | {"files": dict, "lineage": list}).items():
        if not isinstance(document.get(key), kind):
            raise InputError(
                f"{file}: {key!r} must be {kind.__name__}, found {shown(document.get(key))}; the file is damaged"
            )
    digest = fingerprint(document["receipt"])
    if document.get(_RECEIPT_SHA256, digest) != digest:
        raise InputError(
            f"{file}: 'receipt' is not what the stage wrote; the file is damaged: remove the directory, and make it "
            "again"
        )
    for entry in document["lineage"]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), t) for k, t in _STAGE_FIELDS.items()):
            raise InputError(f"{file}: the lineage holds {shown(entry)}, which is no stage; the file is damaged")
    for name, entry in document["files"].items():
        if (
            not isinstance(entry, dict)
            or type(entry.get("size")) is not int
            or not isinstance(entry.get("sha256"), str)
        ):
            raise InputError(f"{file}: the entry of {shown(name)} lacks size or sha256; the file is damaged")


def _own_stage(recorded: dict[str, Any]) -> dict[str, Any]:
    source = recorded.get("source", {})
    names = [one.get("name") for one in (source if isinstance(source, list) else [source]) if isinstance(one, dict)]
    return {key: recorded[key] for key in ("stage", "options", "fingerprint", "tool", "receipt")} | {"source": names}


def _basename(path: Path) -> str:
    return path.name if path.name not in ("", "..") else path.resolve().name


def _relevant(directory: Path) -> list[str]:
    """Files that make up a checkpoint: those at the top, or at any depth when no weights lie at the top."""
    wanted = _WEIGHTS | _TEXTS
    top = sorted(file.name for file in directory.iterdir() if file.suffix in wanted and file.is_file())
    if any(Path(name).suffix in _WEIGHTS for name in top):
        return top
    below = (file for file in directory.rglob("*") if file.suffix in wanted and file.is_file())
    names = (file.relative_to(directory) for file in below)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _chosen(directory: Path, weights: Sequence[Path]) -> list[str]:
    texts = {file.name for file in directory.iterdir() if file.suffix in _TEXTS and file.is_file()}
    return sorted(texts | {file.relative_to(directory).as_posix() for file in weights})


def _hash(directory: Path, names: Sequence[str], jobs: int | None) -> dict[str, dict[str, Any]]:
    def describe(name: str) -> dict[str, Any]:
        return {"size": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}

    with ThreadPoolExecutor(jobs or min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(describe, names), strict=True))


def _recorded_files(directory: Path, recorded: dict[str, Any], edited: bool) -> dict[str, dict[str, Any]]:
    written = (directory / PROVENANCE_NAME).stat().st_mtime_ns
    extra = [name for name in _relevant(directory) if name not in recorded["files"] and name != PROVENANCE_NAME]
    files = _hash(directory, extra, None)
    for name, entry in recorded["files"].items():
        file = inside(directory, name)
        state = file.stat()
        if state.st_size <= CHEAP:
            files[name] = {"size": state.st_size, "sha256": sha256_file(file)}
            continue
        same, found = state.st_size == entry["size"], entry["sha256"]
        if state.st_mtime_ns > written or (edited and not same):
            found = sha256_file(file)
            same = same and found == entry["sha256"]
        if not same and not edited:
            raise InputError(
                f"{file}: changed since {PROVENANCE_NAME} was written; make the directory again,"
                f" or remove {PROVENANCE_NAME} to take it as it is"
            )
        files[name] = {"size": state.st_size, "sha256": found}
    return dict(sorted(files.items()))
