"""The errors that a user can act on. Anything else that reaches the terminal is a bug of ours."""

from __future__ import annotations


class UltraMemError(Exception):
    """Base of every error with a message meant for the user: one line that says what, expected, found, what to do."""

    exit_code = 2


class InputError(UltraMemError):
    """A file, option, tensor or configuration is not what the command needs (exit code 2)."""


class CheckFailed(UltraMemError):
    """The inputs were fine and a comparison or check came out negative (exit code 1)."""

    exit_code = 1


class ConfigError(InputError):
    """A configuration is invalid; carries every problem found, not the first alone."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = list(problems)
        count = len(self.problems)
        super().__init__(f"{where}: {count} problem{'s' if count != 1 else ''}: " + "; ".join(self.problems))
