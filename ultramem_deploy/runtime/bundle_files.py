"""What is wrong with a bundle's files, one line each; read, never loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..checkpoint.files import sha256_file
from ..checkpoint.header import read_header
from .manifest import MANIFEST, require_inside

Document = dict[str, Any]
_BLOCK = 4 << 20
_RUNS, _RUN = 1024, 4096


def wrong_sizes(bundle: Path, document: Document) -> Iterator[str]:
    """Files that are missing, or have another size than the manifest says."""
    for name, entry in document["files"].items():
        file = bundle / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != entry["size"]:
            yield f"{name}: {file.stat().st_size} bytes, the manifest says {entry['size']}"


def wrong_tables(bundle: Path, document: Document) -> Iterator[str]:
    """Tables whose safetensors header says otherwise than the manifest. Raises InputError for an unreadable header."""
    for entry in (*document["tables"], *document["plugins"]):
        require_inside(bundle / MANIFEST, entry["file"])
    for entry in document["tables"]:
        found = read_header(bundle / entry["file"])[0].get(entry["name"])
        if found is None:
            yield f"{entry['file']}: holds no tensor {entry['name']}"
            continue
        for key, value in (("offset", found.offset), ("dtype", found.dtype), ("shape", list(found.shape))):
            if entry[key] != value:
                yield f"{entry['file']}: {entry['name']} has {key} {value}, the manifest says {entry[key]}"


def wrong_hashes(
    bundle: Path, document: Document, *, most: int | None = None, advance: Callable[[int, str], None] | None = None
) -> Iterator[str]:
    """Files with another SHA-256 than the manifest says; `most` leaves out those of more bytes."""
    for name, entry in document["files"].items():
        if most is not None and entry["size"] > most:
            continue
        found = sha256_file(bundle / name)
        if found != entry["sha256"]:
            yield f"{name}: SHA-256 {found[:12]}…, the manifest says {entry['sha256'][:12]}…: the file changed"
        if advance is not None:
            advance(entry["size"], name)


def range_hash(file: Path, offset: int, size: int, advance: Callable[[int, str], None] | None = None) -> str:
    """SHA-256 of `size` bytes at `offset` of a file, as hex; what lies past the end is left out."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        stream.seek(offset)
        while size and (block := stream.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
            if advance is not None:
                advance(len(block), file.name)
    return digest.hexdigest()


def table_fingerprint(file: Path, offset: int, size: int) -> str:
    """What tells one table from another without reading all of it (plugins/gpu_tables/fingerprint.h has the same).

    SHA-256 as hex of `size` (64 bits, little endian) and of 1024 runs of 4096 bytes spread evenly over the bytes, the
    first and the last among them; of all bytes where there are no more.
    """
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with open(file, "rb") as stream:
        if size <= _RUNS * _RUN:
            stream.seek(offset)
            digest.update(stream.read(size))
        else:
            for run in range(_RUNS):
                stream.seek(offset + (size - _RUN) * run // (_RUNS - 1))
                digest.update(stream.read(_RUN))
    return digest.hexdigest()
