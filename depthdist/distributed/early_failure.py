"""An error before the ranks have met ends all of them, not only the one that has it.

    expect_ranks()      # the first thing that a command of several ranks does

Wrong data on one machine, a package that is missing there, a flag that only it lacks: the others
would wait for that rank. It leaves its error in the store where they meet.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any, NoReturn

from depthdist.core.command import (
    BAD_INPUT,
    INTERRUPTED,
    LAUNCHER_GRACE_S,
    STOPPED,
    register_ranks,
)
from depthdist.core.environment import local_rank, local_world_size, rank, world_size
from depthdist.core.errors import SettingsError, one_line
from depthdist.core.stop_signals import stop_signal
from depthdist.distributed.failure_report import FailureReport, exit_at_once, show
from depthdist.distributed.launcher_watch import find_launchers
from depthdist.distributed.launchers import adopt_slurm_variables
from depthdist.distributed.meeting import (
    LINGER_S,
    POLL_S,
    WAITING,
    MeetingEnded,
    agent_serves,
    await_heard,
    early_store,
    open_store,
)

TELL_S = 60.0  # that a failed rank tries to reach the others, which may still be starting


def expect_ranks() -> None:
    """Take this process for one of several ranks, where a launcher says so."""
    adopt_slurm_variables()
    if world_size() > 1 and "MASTER_ADDR" in os.environ:  # not WORLD_SIZE typed for a dry run
        judge = EarlyJudge()
        register_ranks(judge.leave, judge)


class EarlyJudge:
    """Tells the other ranks of this one's failure, as FailureWatch does once they have met."""

    def __init__(self) -> None:
        self.mine: FailureReport | None = None
        self.first: FailureReport | None = None

    def judge(self, err: BaseException, code: int, text: str) -> str:
        """Return the text to show for this rank's error, "" where another rank shows it."""
        if isinstance(err, MeetingEnded):
            self.first = err.report
            return ""
        self.mine = FailureReport(rank(), code, one_line(text), socket.gethostname())
        # every rank of this machine found the same
        return "" if isinstance(err, SettingsError) and local_rank() else text

    def end(self) -> NoReturn:
        """Tell the others, repeat the first error where it was another one, and exit."""
        if self.mine and (self.mine.code == INTERRUPTED or _launcher_ends_the_others()):
            if self.mine.code == BAD_INPUT and local_rank():  # the one that shows it ends first
                time.sleep(LAUNCHER_GRACE_S)
            sys.exit(self.mine.code)
        report = self.first or (_tell(self.mine) if self.mine else None)
        assert report, "judge comes first"
        if not local_rank() and (not self.mine or report.text != self.mine.text):
            show(report.line())
        exit_at_once(report.code, report.line())

    def leave(self) -> None:
        """Tell the others that this rank was asked to stop."""
        if not _launcher_ends_the_others():
            text = f"stopped by {stop_signal()} {WAITING}"
            _tell(FailureReport(rank(), STOPPED, text, socket.gethostname()), LINGER_S)


def _launcher_ends_the_others() -> bool:
    """Return whether all ranks are here, and their launcher ends them when the first one ends."""
    if local_world_size() < world_size():
        return False
    return bool(find_launchers())


def _tell(mine: FailureReport, seconds: float = TELL_S) -> FailureReport:
    """Leave this rank's error to the others, and return the first one that was left.

    It is this one too where nobody can be reached.
    """
    deadline = time.monotonic() + seconds
    store: Any = None
    try:
        while not (store := open_store()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not store:
            return mine
        early = early_store(store)
        report = FailureReport.from_store(early.compare_set("word", "", mine.to_store()))
        early.set(f"heard/{rank()}", "")
        if not agent_serves():  # the store ends with rank 0
            others = set(range(1, world_size())) if rank() == 0 else {0}
            await_heard(early, others, seconds if rank() == 0 else LINGER_S)
        return report
    except RuntimeError:  # another run has the port, or rank 0 is gone
        return mine
