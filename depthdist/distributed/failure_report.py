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

GONE = "gone without a word: killed, out of memory?"


class FailureReport(NamedTuple):
    """What a failed rank leaves, or others leave for it: exit code and error, in one line."""

    rank: int
    code: int
    text: str

    @classmethod
    def of_gone(cls, rank: int) -> FailureReport:
        """Return the report that others leave for a process that is gone."""
        return cls(rank, FAILED, GONE)

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


def process_space() -> str:
    """Return a name for what a process id means something in.

    Processes see each other by id on one machine since it started, in the same container.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    return boot + os.readlink("/proc/self/ns/pid")


def is_running(pid: int) -> bool:
    """Return whether a process of this machine is still at work."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
