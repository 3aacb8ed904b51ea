"""`bundle --check`: every hash, every version, every path of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckFailed, InputError
from ...ops import DOMAIN, VERSION
from ...runtime.bundle_files import Document, range_hash, wrong_hashes, wrong_sizes, wrong_tables
from ...runtime.engine_manifest import ENGINE_FILE, check_engine
from ...runtime.engine_manifest import read_manifest as read_engine_manifest
from ...runtime.manifest import RUNTIMES, check_onnxruntime, check_version, read_manifest
from ...runtime.ort_model import check_description, description_fingerprint, read_model
from ...runtime.plugins import library_info, library_version, ort_library
from ...spec import ModelSpec

Progress = Callable[[int, int, str], None]


def check_bundle(bundle: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Verify the bundle; returns what was checked. Raises CheckFailed with the first thing that is wrong.

    A file that is there and not listed is no error: it has no part in loading. InputError for what is no bundle.
    """
    bundle = Path(bundle)
    document = read_manifest(bundle, RUNTIMES)
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
        yield from wrong_sizes(bundle, document)
        yield from wrong_tables(bundle, document)
        yield from wrong_hashes(bundle, document, advance=_counted(document, progress))
        for table in document["tables"]:
            if range_hash(bundle / table["file"], table["offset"], table["bytes"]) != table["sha256"]:
                yield f"{table['file']}: table {table['name']} is not the one that the manifest describes"
        yield from _wrong_model(bundle, document)
        yield from _wrong_versions(bundle, document)
    except InputError as error:
        yield str(error).removeprefix(f"{bundle}: ")


def _counted(document: Document, progress: Progress | None) -> Callable[[int, str], None]:
    total, done = sum(entry["size"] for entry in document["files"].values()), 0

    def advance(count: int, what: str) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, what)

    return advance


def _wrong_model(bundle: Path, document: Document) -> Iterator[str]:
    spec = ModelSpec.load(bundle)
    if document["runtime"] == "onnxruntime":
        check_description(bundle, read_model(bundle), spec)
        return
    held = read_engine_manifest(bundle / ENGINE_FILE)
    check_engine(bundle / ENGINE_FILE, held)
    if description_fingerprint(spec) != held.description:
        yield f"config.json does not describe {ENGINE_FILE}"


def _wrong_versions(bundle: Path, document: Document) -> Iterator[str]:
    requires = document["requires"]
    if requires["operators"] != {"domain": DOMAIN, "version": VERSION}:
        yield f"operators {requires['operators']}, this release runs {DOMAIN} version {VERSION}"
    onnxruntime = document["runtime"] == "onnxruntime"
    if onnxruntime:
        check_onnxruntime(bundle, document)
    version = _ort_version if onnxruntime else library_version
    libraries = [bundle / entry["file"] for entry in document["plugins"]]
    for library in libraries or ([ort_library()] if onnxruntime else []):
        check_version(library.name, version(library), requires["plugin"], "install a newer ultramem-deploy")
    for entry, library in zip(document["plugins"], libraries, strict=True):
        if version(library) != entry["version"]:
            yield f"{library.name}: not version {entry['version']}, as the manifest says"


def _ort_version(library: Path) -> str:
    return library_info(library)["version"]
