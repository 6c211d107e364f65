"""The exceptions that users meet, and how an error is shown on one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLAG = re.compile(r"(?<![^\s(])--([a-z]+(?:-[a-z]+)*)")
LINE_LENGTH = 1000  # characters of an error that go into one line
REASON_LENGTH = 300  # of the reason why one of many files or machines cannot be used
LEFT_OUT = " ... "


class SettingsError(ValueError):
    """Invalid settings: every problem that was found, one a line."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))


class Stopped(Exception):
    """The command was asked to stop and has saved its work; the message says how to resume.

    by    who asked, as stop_signal() says
    what  was going on, what is saved, and how to resume
    """

    def __init__(self, by: str, what: str):
        super().__init__(f"stopped by {by} {what}")
        self.by = by


@contextmanager
def stopping(what: str) -> Iterator[None]:
    """Let Stopped say what was going on, where what raises it does not know."""
    try:
        yield
    except Stopped as stop:
        raise Stopped(stop.by, what) from None


class BadFile(ValueError):
    """A file that cannot be used: its path, what was found and what was expected."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = " ".join(reason.split())  # one line

    def __str__(self) -> str:
        return f"{printable_path(self.path)}: {self.reason}"


class CannotWrite(ValueError):
    """What the operating system does not let us write: a full disk, a folder that is gone."""


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Let an error name arguments (near_mm) where those of the commands name flags (--near-mm)."""
    try:
        yield
    except ValueError as err:
        text = FLAG.sub(lambda match: match[1].replace("-", "_"), str(err))
        raise ValueError(text) from None


def printable_path(path: Path | str) -> str:
    """Return `path` as text that stays on one line and that any terminal can print."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def one_line(err: BaseException | str, length: int = LINE_LENGTH) -> str:
    """Return the text of an error on one line; of a longer one the start and the end.

    The start says what is wrong, the end what to do.

    length  in characters, at most
    """
    text = " ".join(str(err).split()) or type(err).__name__
    if len(text) <= length:
        return text
    kept = length - len(LEFT_OUT)
    return text[: kept - kept // 2] + LEFT_OUT + text[len(text) - kept // 2 :]


def one_reason(err: BaseException | str) -> str:
    """Return why one of many files or machines cannot be used, on one line of a list."""
    return one_line(err, REASON_LENGTH)


def os_error_text(err: OSError) -> str:
    """Return "FILE: reason" for an error of the operating system."""
    if not err.strerror:
        return str(err) or repr(err)
    return f"{err.filename or 'output'}: {err.strerror}"
