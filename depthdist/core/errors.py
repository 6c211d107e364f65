"""The exceptions that users meet, and how one is shown on one line."""

from __future__ import annotations

from pathlib import Path


class SettingsError(ValueError):
    """What is wrong with the settings: every problem found, one a line."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))


class Stopped(Exception):
    """A command was asked to stop, and did so in good order; the message says how to go on."""


class BadFile(ValueError):
    """A file that cannot be used: its path, then what was found and what was expected."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), " ".join(reason.split())  # one line

    def __str__(self) -> str:
        return f"{printable_path(self.path)}: {self.reason}"


def printable_path(path: Path | str) -> str:
    """`path` as text that stays on one line and that any terminal can print."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def one_line(err: BaseException | str) -> str:
    """What the error says, short enough for one line."""
    return " ".join(str(err).split())[:300] or type(err).__name__
