"""The process that DeepSpeed's runner starts: on one machine its launcher, for several pdsh.

launcher = LauncherProcess()
runner.subprocess = launcher.in_place_of(subprocess)
adopt_orphans()
runner.main(words)
launcher.exit_if_killed()     # which the runner takes for a success
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil

from depthdist.core.environment import no_signals_to_children
from depthdist.distributed.failure_report import show
from depthdist.distributed.launcher_watch import (
    LAUNCH,
    command_line,
    is_alive,
    launch_of,
    program_of,
)

KILLED = 128  # an exit code above it is the signal's number more, as shells say it
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class LauncherProcess:
    """What DeepSpeed's runner starts first, and the ranks of this machine below it."""

    def __init__(self) -> None:
        self.words: Sequence[str] = ()
        self.process: subprocess.Popen[Any] | None = None

    def in_place_of(self, module: ModuleType) -> SimpleNamespace:
        """Return what the module subprocess has, with `start` as its Popen."""
        return SimpleNamespace(**{**vars(module), "Popen": self.start})

    def start(self, words: Sequence[str], **how: Any) -> subprocess.Popen[Any]:
        """Start a process as Popen does, and keep the first one.

        Signals do not reach the launcher of one machine, as those to a whole process group would:
        it dies of SIGUSR1, and after SIGTERM or Ctrl-C it kills ranks that still save after 30 s,
        and ends with 1. Its ranks inherit the mask; note_stop_signals() lifts it there.
        """
        if self.process:
            return subprocess.Popen(words, **how)
        self.words = words
        is_launch = program_of(words)[0] == LAUNCH
        with no_signals_to_children() if is_launch else nullcontext():
            self.process = subprocess.Popen(words, **how)
        return self.process

    def signal_sent(self) -> int:
        """Return a signal that waits at the launcher, which it does not reach; 0 where none does.

        Whoever sends it one asks its ranks to stop.
        """
        waiting = signals_of(self.process.pid, "ShdPnd") if self.process else 0
        return next((number for number in PASSED_ON if has_signal(waiting, number)), 0)

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks on this machine that are at work.

        They are below DeepSpeed's launcher. Over ssh that one is not below this process; where it
        is gone they are this process's own.
        """
        if not self.process:
            return []
        if program_of(self.words)[0] == LAUNCH:
            launch = self.process.pid
            own = [process for process in _children(os.getpid()) if process.pid != launch]
            return [rank for rank in own + _children(launch) if is_alive(rank)]
        ranks: list[psutil.Process] = []
        for process in psutil.process_iter() if launch_of(self.words) else ():
            words = command_line(process)
            if program_of(words)[0] == LAUNCH and launch_of(words) == launch_of(self.words):
                ranks += _children(process.pid)
        return ranks

    def exit_if_killed(self) -> None:
        """End this process where a signal ended the launcher, after the ranks that it has left."""
        code = self.process.returncode if self.process else 0
        if code >= 0:
            return
        show(
            f"error: the launcher process ({program_of(self.words)[0]}) was killed by"
            f" {describe_signal(-code)}; its ranks save and end, and the same command goes on"
        )
        psutil.wait_procs(self.ranks())
        sys.exit(KILLED - code)


def adopt_orphans() -> None:
    """Become the parent of processes below this one whose own parent ends, to wait for them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def signals_of(pid: int, which: str) -> int:
    """Return a set of signals in /proc/PID/status, 0 where that cannot be read.

    which  such as SigCgt, those that are handled; see proc(5)
    """
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        return int(status.split(f"{which}:")[1].split()[0], 16)
    return 0


def has_signal(signals: int, number: int) -> bool:
    """Return whether a signal is in a set."""
    return bool(signals >> (number - 1) & 1)


def describe_signal(number: int) -> str:
    """Return the name of a signal; some have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
