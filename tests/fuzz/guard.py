"""Watches a reader: it must answer in time and in little memory, run no code, and stay inside its directory."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultramem_deploy.errors import InputError

SECONDS = 10.0
PEAK_KIB = 512 << 10
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
    "os.symlink", "os.link", "os.putenv", "subprocess.", "socket.", "shutil.", "ctypes.", "exec", "pty.",
)  # fmt: skip
_READABLE = tuple(
    os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[2], "/proc", "/sys")
)


class Hang(BaseException):
    """No `except Exception` of the code under test catches it."""


class _Watch:
    root: str | None = None
    seen: list[str]

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        # Running the code of a module of ours, or of Python's, is an import.
        imports = event == "exec" and getattr(args[0], "co_filename", "").startswith(_READABLE)
        if event.startswith(_FORBIDDEN) and not imports:
            self.seen.append(f"{event} {args!r:.200}")
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(args[0]))
            written = isinstance(args[1], str) and set(args[1]) & set("wxa+")
            if written or not path.startswith((self.root, *_READABLE)):
                self.seen.append(f"open {path} {args[1]}")


_WATCH = _Watch()
_HOOKED: list[Any] = []


@contextmanager
def _watched(root: Path) -> Iterator[None]:
    if not _HOOKED:
        sys.addaudithook(_WATCH)  # for good: Python cannot take one away
        _HOOKED.append(_WATCH)
    _WATCH.root, _WATCH.seen = os.path.realpath(root) + os.sep, []
    try:
        yield
    finally:
        _WATCH.root = None
    assert not _WATCH.seen, f"the reader did what it must not: {_WATCH.seen}"


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Hang(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answers(read: Callable[[], object], root: Path) -> str | None:
    """None where `read` succeeds, else the one line that it says; whatever else it does fails the test."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = None
    with _watched(root), _in_time():
        try:
            read()
        except InputError as error:
            message = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < PEAK_KIB, f"{grown >> 10} MiB more memory at its peak"
    if message is not None:
        assert message and message.isprintable() and len(message) < 4000, repr(message[:400])
    return message
