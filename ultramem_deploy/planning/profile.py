"""How fast this machine reads, writes, copies, gathers and multiplies: measured once, else a stated generic profile."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.appending import open_to_append
from ..errors import InputError
from .machine import cores

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_PIECE = 16 << 20
_FILE_BYTES = 512 << 20
_SECONDS = 1.2  # a measurement stops at this, or when it has done all
_ROW_BYTES = 1024


@dataclass(frozen=True)
class MachineProfile:
    """Rates in bytes and multiply-adds' operations a second; `machine` says whose they are.

    Hashing is one core's; random rows and products are every core's together; writing is a large file's, which goes
    around the page cache, and copying goes through it.
    """

    source: str
    machine: str
    read_bytes_per_second: float
    write_bytes_per_second: float
    copy_bytes_per_second: float
    hash_bytes_per_second: float
    random_row_bytes_per_second: float
    gemm_flops_per_second: float


GENERIC = MachineProfile(
    source="generic",
    machine="two cores of a server with a local SSD",
    read_bytes_per_second=1e9,
    write_bytes_per_second=1.5e9,
    copy_bytes_per_second=0.7e9,
    hash_bytes_per_second=1.5e9,
    random_row_bytes_per_second=0.5e9,
    gemm_flops_per_second=40e9,
)


def this_machine() -> str:
    """The processor and the cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, '') or platform.processor() or platform.machine()}, {cores()} cores"


def profile_path() -> Path:
    """Where the measured profile is kept: in the user's cache directory (XDG)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return root / "ultramem-deploy" / "profile.json"


def load_profile() -> MachineProfile:
    """The measured profile of this machine, or the generic one where there is none that can be read."""
    try:
        found = MachineProfile(**json.loads(profile_path().read_text(encoding="utf-8")))
        rates = [value for name, value in asdict(found).items() if name.endswith("_second")]
        if found.machine == this_machine() and all(rate > 0 for rate in rates):
            return found
    except (OSError, ValueError, TypeError):
        pass
    return GENERIC


def calibrate(directory: Path | None = None) -> MachineProfile:
    """Measure this machine in less than 10 seconds, files in `directory` (the cache's by default), and keep the result.

    Raises InputError where the files cannot be written.
    """
    path = profile_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory or path.parent, prefix="calibrate-") as folder:
            rates = _file_rates(Path(folder))
        profile = MachineProfile("measured", this_machine(), **rates, **_memory_rates())
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"--calibrate: {path}: cannot be written: {error.strerror or error}") from None
    return profile


def _file_rates(folder: Path) -> dict[str, float]:
    piece = mmap.mmap(-1, _PIECE)  # page-aligned, as direct I/O wants
    piece.write(os.urandom(_PIECE))
    file, copied = folder / "written", folder / "copied"
    rates = {"write_bytes_per_second": _written(file, lambda: piece, direct=True)}
    rates["read_bytes_per_second"] = _read(file)
    with open(file, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rates["copy_bytes_per_second"] = _written(copied, lambda: stream.read(_PIECE), direct=False)
    return rates


def _written(file: Path, piece: Callable[[], Buffer], direct: bool) -> float:
    start, count = time.perf_counter(), 0
    handle = open_to_append(file, direct)
    try:
        while count < _FILE_BYTES and time.perf_counter() - start < _SECONDS:
            written = os.write(handle, piece())
            if not written:
                break
            count += written
        os.fsync(handle)
    finally:
        os.close(handle)
    return count / (time.perf_counter() - start)


def _read(file: Path) -> float:
    start, count, buffer = time.perf_counter(), 0, bytearray(_PIECE)
    with open(file, "rb", buffering=0) as stream:
        while (got := stream.readinto(buffer)) and time.perf_counter() - start < _SECONDS:
            count += got
    return max(count, 1) / (time.perf_counter() - start)


def _memory_rates() -> dict[str, float]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    table = np.ones((256 << 20) // _ROW_BYTES * (_ROW_BYTES // 4), np.float32).reshape(-1, _ROW_BYTES // 4)
    rows = rng.integers(0, len(table), 1 << 14)
    left, right = (rng.standard_normal((512, 512)) for _ in range(2))
    data = bytes(_PIECE)
    with threadpool_limits(1):  # type: ignore[no-untyped-call]
        return {
            "hash_bytes_per_second": _rate(lambda: hashlib.sha256(data).digest(), _PIECE, 1),
            "random_row_bytes_per_second": _rate(lambda: table[rows].sum(), len(rows) * _ROW_BYTES, cores()),
            "gemm_flops_per_second": _rate(lambda: left @ right, 2 * 512**3, cores()),
        }


def _rate(action: Callable[[], Any], amount: int, threads: int) -> float:
    """Amount a second of `threads` threads that repeat the action."""

    def repeat(_: int) -> int:
        done = 0
        while time.perf_counter() - start < _SECONDS / 2:
            action()
            done += 1
        return done

    action()
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(repeat, range(threads)))
    return amount * done / (time.perf_counter() - start)
