"""Which exceptions are a user's to act on: one line on stderr and an exit code. Every other one keeps its traceback."""

from __future__ import annotations

import errno
import re

import click

from ..errors import UltraMemError

INTERRUPTED = "interrupted: run the same command again to continue"
SIGINT_CODE = 130
USAGE_CODE = 2
_MACHINE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENFILE,
    errno.ENODEV,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def message_and_code(error: Exception) -> tuple[str, int] | None:
    """What to print and the exit code. None for what is a bug of ours. (A closed pipe is silenced by click itself.)"""
    if isinstance(error, UltraMemError):
        return f"error: {error}", error.exit_code
    if isinstance(error, click.UsageError):
        asked = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
        return f"error: {error.format_message()}{asked}", USAGE_CODE
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}", error.exit_code
    if isinstance(error, click.Abort):
        return INTERRUPTED, SIGINT_CODE
    if _is_out_of_memory(error):
        said = f" ({error})" if str(error) else ""
        return f"error: out of memory{said}; choose smaller sizes, or a machine with more memory", USAGE_CODE
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib, before Python 3.13
        return f"error: {error}; choose another path", USAGE_CODE
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}", USAGE_CODE
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """NumPy's, and PyTorch's: it has a type for a GPU alone, by name here because verbs must not import it."""
    allocating = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or allocating or type(error).__name__ == "OutOfMemoryError"


def one_line(message: str) -> str:
    """The message with its line breaks, and the spaces around them, collapsed."""
    return re.sub(r"\s*[\r\n]\s*", " ", message.strip())
