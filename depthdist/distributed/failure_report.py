"""What the ranks of a run tell one another when one fails, and how a rank ends then."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil

from depthdist.core.command import FAILED
from depthdist.distributed.launcher_watch import is_alive

GONE = "gone without a word: killed, out of memory?"


class FailureReport(NamedTuple):
    """What a failed rank leaves, or others leave for it: exit code and error, in one line.

    host  of the rank, "" where it is not known
    """

    rank: int
    code: int
    text: str
    host: str = ""

    @classmethod
    def of_gone(cls, rank: int, host: str = "") -> FailureReport:
        """Return the report that others leave for a process that is gone."""
        return cls(rank, FAILED, GONE, host)

    def line(self) -> str:
        """Return the report for people."""
        return f"rank {self.rank}{f' on {self.host}' if self.host else ''}: {self.text}"

    @classmethod
    def from_store(cls, word: bytes) -> FailureReport:
        """Return the report that somebody left in the store."""
        return cls(*json.loads(word))

    def to_store(self) -> str:
        """Return the report as the store keeps it."""
        return json.dumps(self)


def show(line: str) -> None:
    """Print a line of this command to the screen's standard error."""
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr, flush=True)


def exit_at_once(code: int, line: str) -> NoReturn:
    """End this process; the interpreter's own end would wait for threads and for NCCL.

    line  the first error of the run, for torchrun, which shows it at its end
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(file).write_text(
            json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8"
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_running(pid: int) -> bool:
    """Return whether a process of this machine is still at work."""
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
