"""Brings TensorRT's C++ headers to a folder: `fetch_headers.py FOLDER`.

No wheel of NVIDIA's has them. The PyPI package kernel-lens carries NVIDIA's own (Apache-2.0, TensorRT 10.14) as data;
this release of it and no other is taken, and only those files. A plugin built with them loads in TensorRT 10 and 11.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "kernel-lens==2.0.1"
SHA256 = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"
HEADERS = "kernel_lens/include/tensorrt/"


def download(folder: Path) -> Path:
    """The package's wheel, fetched by pip as any package is. Raises OSError where pip cannot or it is another file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise OSError(f"pip could not download {PACKAGE}")
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise OSError(f"{wheel.name} has SHA-256 {found}, expected {SHA256}")
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """Writes the headers in `wheel` to `folder`, flat."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(HEADERS) and name.endswith(".h"):
                (folder / Path(name).name).write_bytes(archive.read(name))


def main(folder: str) -> None:
    """Exits 1 with one line where the headers cannot be had."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            unpack(download(Path(temporary)), Path(folder))
        except OSError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
