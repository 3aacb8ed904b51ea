"""`bundle --check`: every hash, every version, every path of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...checkpoint.files import sha256_file
from ...errors import CheckFailed, InputError
from ...ops import DOMAIN, VERSION
from ...runtime.manifest import MANIFEST, check_version, read_manifest, require_inside
from ...runtime.ort_model import check_description, read_model
from ...runtime.plugins import library_info, ort_library
from ...spec import ModelSpec
from .manifest import range_hash, tables_match

Progress = Callable[[int, int, str], None]
Document = dict[str, Any]


def check_bundle(bundle: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Verify the bundle; returns what was checked. Raises CheckFailed with the first thing that is wrong.

    A file that is there and not listed is no error: it has no part in loading. InputError for what is no bundle.
    """
    bundle = Path(bundle)
    document = read_manifest(bundle)
    problem = next(_problems(bundle, document, progress), None)
    if problem:
        raise CheckFailed(f"{bundle}: {problem}; copy the bundle again, or make it anew with `ultramem-deploy bundle`")
    return {
        "ok": True,
        "schema": document["schema"],
        "runtime": document["runtime"],
        "files": len(document["files"]),
        "bytes": sum(entry["size"] for entry in document["files"].values()),
        "tables": len(document["tables"]),
        "plugins": [entry["file"] for entry in document["plugins"]],
        "requires": document["requires"],
    }


def _problems(bundle: Path, document: Document, progress: Progress | None) -> Iterator[str]:
    """One line for everything that is wrong. Cheap checks come first; a library is loaded once its hash is right."""
    try:
        yield from _wrong_sizes(bundle, document)
        for entry in (*document["tables"], *document["plugins"]):
            require_inside(bundle / MANIFEST, entry["file"])
        if mismatch := tables_match(bundle, document["tables"]):
            yield mismatch
        yield from _wrong_hashes(bundle, document, progress)
        check_description(bundle, read_model(bundle), ModelSpec.load(bundle))
        yield from _wrong_versions(bundle, document)
    except InputError as error:
        yield str(error).removeprefix(f"{bundle}: ")


def _wrong_sizes(bundle: Path, document: Document) -> Iterator[str]:
    for name, entry in document["files"].items():
        file = bundle / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != entry["size"]:
            yield f"{name}: {file.stat().st_size} bytes, the manifest says {entry['size']}"


def _wrong_hashes(bundle: Path, document: Document, progress: Progress | None) -> Iterator[str]:
    files = document["files"]
    total, done = sum(entry["size"] for entry in files.values()), 0
    for name, entry in files.items():
        found = sha256_file(bundle / name)
        if found != entry["sha256"]:
            yield f"{name}: SHA-256 {found[:12]}…, the manifest says {entry['sha256'][:12]}…: the file changed"
        done += entry["size"]
        if progress is not None:
            progress(done, total, name)
    for table in document["tables"]:
        if range_hash(bundle / table["file"], table["offset"], table["bytes"]) != table["sha256"]:
            yield f"{table['file']}: table {table['name']} is not the one that the manifest describes"


def _wrong_versions(bundle: Path, document: Document) -> Iterator[str]:
    requires = document["requires"]
    if requires["operators"] != {"domain": DOMAIN, "version": VERSION}:
        yield f"operators {requires['operators']}, this release runs {DOMAIN} version {VERSION}"
    libraries = [bundle / entry["file"] for entry in document["plugins"]]
    for library in libraries or [ort_library()]:
        found = library_info(library)["version"]
        check_version(library.name, found, requires["plugin"], "install a newer ultramem-deploy")
    for entry, library in zip(document["plugins"], libraries, strict=True):
        if library_info(library)["version"] != entry["version"]:
            yield f"{library.name}: not version {entry['version']}, as the manifest says"
