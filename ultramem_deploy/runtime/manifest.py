"""A bundle's manifest.json: what it holds, where, by which hashes, and the versions that loading enforces.

plugins/runtime/manifest.cpp reads the same file: a change here that an older reader would get wrong raises SCHEMA.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.version import InvalidVersion, Version

from ..errors import InputError
from ..spec import read_json
from .manifest_parts import problem

MANIFEST = "manifest.json"
FORMAT, SCHEMA = "ultramem-bundle", 1
RUNTIMES = ("onnxruntime", "tensorrt")
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


def read_manifest(directory: Path, runtimes: Sequence[str] = ("onnxruntime",)) -> dict[str, Any]:
    """The manifest of a bundle for one of `runtimes`.

    Raises InputError where there is none, or one that this release does not read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{directory}: holds no {MANIFEST}: make a bundle with `ultramem-deploy bundle MODEL OUT`")
    document = read_json(path)
    if document.get("format") != FORMAT:
        raise InputError(f"{path}: format {document.get('format')!r}, expected {FORMAT!r}: not a bundle's manifest")
    schema = document.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise InputError(
            f"{path}: schema {schema!r}, this release reads 1 to {SCHEMA}; install a newer ultramem-deploy"
        )
    if document.get("runtime") not in runtimes:
        raise InputError(
            f"{path}: a bundle for runtime {document.get('runtime')!r}, expected {' or '.join(runtimes)}; bundle again "
            f"with --runtime {runtimes[0]}, or install a newer ultramem-deploy"
        )
    damage = problem(path.read_bytes(), document["runtime"])
    if damage:
        raise InputError(f"{path}: {damage}: the file is damaged, make the bundle again")
    for name in document["files"]:
        require_inside(path, name)
    return document


def require_inside(manifest: Path, name: Any) -> None:
    """Raise InputError unless `name` is a relative path that stays in the bundle."""
    pure = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    if pure.is_absolute() or ".." in pure.parts or not pure.name:
        raise InputError(f"{manifest}: {name!r} leaves the bundle; expected a relative path inside it")


def this_platform() -> str:
    """The kind of machine that a plugin library is for, such as linux-x86_64."""
    return f"{platform.system()}-{platform.machine()}".lower()


def check_version(what: str, found: str, required: str, fix: str) -> None:
    """Raise InputError unless version `found` is at least `required`."""
    try:
        good = Version(found) >= Version(required)
    except InvalidVersion as error:
        raise InputError(f"{what}: {error}; {fix}") from None
    if not good:
        raise InputError(f"{what}: version {found}, the bundle requires {required} or newer; {fix}")


def check_onnxruntime(bundle: Path, document: dict[str, Any]) -> None:
    """Raise InputError where this environment's ONNX Runtime is older than the bundle requires; none is no error."""
    found, required = next(filter(None, map(installed, RUNTIME_PACKAGES)), None), document["requires"]["onnxruntime"]
    if found is not None:
        check_version(f"{bundle}: onnxruntime", found, required, f"run: pip install 'onnxruntime>={required}'")


def installed(distribution: str) -> str | None:
    """The version of a Python package of this environment, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
