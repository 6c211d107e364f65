"""Requests to save and stop: from the first line of a command to its last, they are only noted.

    note_stop_signals()       # before what takes long to import
    ...
    stop_signal()             # "SIGTERM", "SIGUSR1", "Ctrl-C", "the end of its launcher"; "" before
    ...
    ignore_stop_signals()     # all is said and done: the exit code stands

The first request counts, whoever it comes from: a signal to this process, one to another rank
(distributed/failure_watch.py), a launcher that is gone (distributed/launcher_watch.py). It is
served where the work can be resumed. A second SIGTERM or Ctrl-C ends the process at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from depthdist.core.errors import Stopped

CTRL_C = "Ctrl-C"
BEFORE_TRAINING = "before training began; the same command goes on"
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # the second is not there on Windows
REPEATED_SIGNAL_S = {"SIGTERM": 5.0, "SIGINT": 1.0}
"""Seconds from a signal until another one counts as a second request.

When a process group gets a signal, its launcher sends it once more.
"""

Handler = Callable[[int, FrameType | None], Any] | int | None

_by = ""  # the first request
_since: dict[int, float] = {}  # when a signal came first
_ending: dict[int, Handler] = {}  # what a second one does
_parent = 0  # process that started this one


def note_stop_signals() -> None:
    """Note SIGTERM, SIGUSR1 and SIGINT from now on; a command does so in its first statement.

    Also those that waited until now: a launcher may have started this process with them blocked.
    SIGINT stays ignored where it is: so a shell starts what runs in the background.
    """
    global _by, _parent
    _by = ""
    _parent = os.getppid()
    _since.clear()
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    for number in numbers:
        handler = signal.getsignal(number)
        if handler is _note or (number == signal.SIGINT and handler == signal.SIG_IGN):
            continue
        _ending[number] = handler
        signal.signal(number, _note)
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def stop_signal() -> str:
    """Return who asked this command to save and stop, "" as long as nobody did."""
    return _by


def note_stop(by: str) -> None:
    """Note a request that was not sent to this process as a signal."""
    global _by
    _by = _by or by


def signal_name(number: int) -> str:
    """Return how a signal is called in messages."""
    return CTRL_C if number == signal.SIGINT else signal.Signals(number).name


def leave_if_stopped(what: str) -> None:
    """Raise Stopped where a stop was asked for; only while no other rank waits for this one.

    what  was going on: it follows "stopped by SIGTERM"
    """
    if _by:
        raise Stopped(_by, what)


def first_parent() -> int:
    """Return the id of the process that started this one, also where it is gone since."""
    return _parent or os.getppid()


def end_on_sigterm(handler: Handler) -> Handler:
    """Let a handler end this process on SIGTERM; where that is noted, on a second one.

    returns  the handler that would have done so before
    """
    if signal.getsignal(signal.SIGTERM) is not _note:
        return signal.signal(signal.SIGTERM, handler)
    before = _ending[signal.SIGTERM]
    _ending[signal.SIGTERM] = handler
    return before


def ignore_stop_signals() -> None:
    """Ignore from now on what was noted so far: the command has said its last line."""
    global _by
    _by = ""
    for number in _ending:
        if signal.getsignal(number) is _note:
            signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: FrameType | None) -> None:
    note_stop(signal_name(number))
    now = time.monotonic()
    first = _since.setdefault(number, now)
    patience = REPEATED_SIGNAL_S.get(signal.Signals(number).name)
    if patience is not None and now > first + patience:
        signal.signal(number, _ending[number])
        signal.raise_signal(number)
