"""End all ranks of a run within seconds when one fails, with its error last on the screen.

    watch = FailureWatch(rank, size, store, timeout)  # a thread, until `part`, when all are done
    shown = watch.judge(err, 2, "bad shard")  # this rank failed: is its error the first of the run?
    watch.end()                               # repeat the first error, and exit

A rank that fails leaves a report in the store where the ranks met. Every rank's FailureWatch looks
for such a report, and for processes of its machine that are gone without one: when a rank is
killed, the others leave a report for it. Whoever finds one ends soon, even while its main thread
waits for the others; one rank on each machine repeats the report.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import psutil
import torch.distributed as dist

from depthdist.core.command import FAILED
from depthdist.core.errors import one_line
from depthdist.core.stop_signals import end_on_sigterm, note_stop, stop_signal

POLL_S = 0.25  # between two looks at the other ranks
GRACE_S = 4.0  # for a rank to end by itself after another one failed
GONE = "gone without a word: killed, out of memory?"
PACKAGE = Path(__file__).parents[1]


class FailureReport(NamedTuple):
    """What a failed rank leaves, or others leave for it: exit code and error, in one line."""

    rank: int
    code: int
    text: str


class FailureWatch(threading.Thread):
    """End this rank soon after another one failed.

    rank, size  this rank, of how many
    store       torch.distributed.Store of this meeting alone, not used elsewhere in this process
    timeout     seconds that a rank waits for the others

    In the store: `who/R` where rank R runs; `word` the first failure; `heard/R` R knows it; `call`
    a rank is missing; `here/R` R is not the missing one; `done/R` R waits for all to be done;
    `left/R` R watches no more; `stop` who asked a rank to save and stop.
    """

    def __init__(self, rank: int, size: int, store: Any, timeout: float):
        super().__init__(daemon=True)
        self.rank = rank
        self.size = size
        self.store = store
        self.timeout = timeout
        self.report: FailureReport | None = None
        self.parted = threading.Event()
        self.ending = threading.Lock()
        me = [socket.gethostname(), os.getpid(), _process_space()]
        self.store.set(f"who/{rank}", json.dumps(me))
        everyone = [json.loads(self.store.get(f"who/{other}")) for other in range(size)]
        self.names = []
        self.pids = {}  # of this machine, by rank
        for other, (host, pid, space) in enumerate(everyone):
            self.names.append(f"rank {other} on {host} (pid {pid})")
            if space == me[2]:
                self.pids[other] = pid
        self.stop_is_shared = False
        self.before = end_on_sigterm(self._terminated)
        self.start()

    def run(self) -> None:
        """Look for failures until all have parted; end this process after the first one."""
        while not self.parted.wait(POLL_S):
            if self.look():
                time.sleep(GRACE_S)
                self.end()

    def look(self) -> FailureReport | None:
        """Return the report of the first rank that failed, or one for a rank that is gone."""
        if self.report:
            return self.report
        # before the store is asked: whoever leaves a report does so while it runs
        gone = [rank for rank, pid in self.pids.items() if not _is_running(pid)]
        try:
            self._share_stop()
            if self.store.check(["call"]):
                self.store.set(f"here/{self.rank}", "")
            if self.store.check(["word"]):
                self._receive(self.store.get("word"))
            elif lost := self._without("done", gone):
                self.leave_report(FailureReport(lost[0], FAILED, GONE))
        except RuntimeError:  # the store ended with rank 0
            self.report = FailureReport(0, FAILED, GONE)
        return self.report

    def leave_report(self, report: FailureReport) -> None:
        """Make it the report of this run, unless there is one already."""
        self._receive(self.store.compare_set("word", "", json.dumps(report)))

    def _share_stop(self) -> None:
        """Let every rank know of a request to stop that one of them got."""
        if self.stop_is_shared:
            return
        if self.store.check(["stop"]):
            note_stop(self.store.get("stop").decode())
        elif stop_signal():
            self.store.set("stop", stop_signal())
        self.stop_is_shared = bool(stop_signal())

    def _receive(self, word: bytes) -> None:
        self.report = FailureReport(*json.loads(word))
        self.store.set(f"heard/{self.rank}", "")

    def judge(self, err: BaseException, code: int, text: str) -> str:
        """Return the text to show for this rank's error.

        "" where it only follows from another rank's end, or another rank has said the same.
        """
        exchange = _failed_exchange(err)
        if exchange:
            # without the place in gloo's source
            reason = re.sub(r"^\[\S+\] ", "", one_line(exchange))
            text = f"waited in vain for the other ranks in {_where(err)}: {reason}"
            if "Timed out" in text:
                text += "; one of them hangs, or is slow and needs a longer DEPTHDIST_TIMEOUT"
            self._find_missing_rank()
        mine = FailureReport(self.rank, code, one_line(text))
        if not self.look():
            self.leave_report(mine)
        assert self.report
        is_first = self.report.rank == self.rank
        is_same = not exchange and self.report.text == mine.text
        if is_same:
            self.report = mine
        follows = bool(exchange) or is_same
        return text if is_first or not follows else ""

    def _find_missing_rank(self) -> None:
        """Wait for the report of the missing rank; leave one for a rank that does not answer."""
        deadline = time.monotonic() + GRACE_S
        try:
            if not self.look():
                self.store.set("call", "")
            while not self.look() and time.monotonic() < deadline:
                time.sleep(POLL_S / 5)
            if not self.report and (lost := self._without("here", range(self.size))):
                self.leave_report(FailureReport(lost[0], FAILED, GONE))
        except RuntimeError:
            self.look()

    def end(self) -> NoReturn:
        """Exit at once, with the report of the run last on the screen.

        The interpreter's own end would wait for threads and for NCCL.
        """
        self.ending.acquire()  # never released: one thread ends this process
        assert self.report
        line = f"{self.names[self.report.rank]}: {self.report.text}"
        if self.rank == min(set(self.pids) - {self.report.rank}, default=None):
            print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun shows it at its end
            Path(file).write_text(
                json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8"
            )
        sys.stdout.flush()
        sys.stderr.flush()
        if self.rank == 0:  # the store ends with this process
            self._await("heard", set(range(self.size)) - {0, self.report.rank}, GRACE_S)
        os._exit(self.report.code)

    def part(self) -> None:
        """Wait until all ranks are done, then stop to watch; raise ValueError if one is missing.

        Rank 0 leaves last, as the store ends with it.
        """
        self.store.set(f"done/{self.rank}", "")
        if lost := self._await("done", range(self.size), self.timeout):
            raise ValueError(
                f"all is done, but after {self.timeout:g} s not on {self.names[lost[0]]};"
                " DEPTHDIST_TIMEOUT in the environment waits longer"
            )
        self.parted.set()
        self.join()
        end_on_sigterm(self.before)
        self.store.set(f"left/{self.rank}", "")
        if self.rank == 0:
            self._await("left", range(self.size), self.timeout)

    def _without(self, what: str, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if not self.store.check([f"{what}/{rank}"])]

    def _await(self, what: str, ranks: Iterable[int], seconds: float) -> list[int]:
        """Return the ranks of these that have not set `what` within that time."""
        deadline = time.monotonic() + seconds
        while (lacking := self._without(what, ranks)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return lacking

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """End after SIGTERM, and with it the run, unless another rank has failed already.

        A launcher sends it to the others after one failed: then this rank ends anyway.
        """
        if not self.look():
            self.leave_report(FailureReport(self.rank, 128 + number, "stopped by SIGTERM"))
            self.end()


def _process_space() -> str:
    """Return a name for what a process id means something in.

    Processes see each other by id on one machine since it started, in the same container.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    return boot + os.readlink("/proc/self/ns/pid")


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _failed_exchange(err: BaseException | None) -> BaseException | None:
    """Return the failed exchange between ranks that the error is or came from, or None.

    gloo's errors are RuntimeErrors like any other.
    """
    words = "gloo|nccl|Connection (closed|reset)|Broken pipe"
    while err:
        if isinstance(err, dist.DistError):
            return err
        if isinstance(err, RuntimeError) and re.search(words, str(err), re.I):
            return err
        err = err.__cause__ or err.__context__
    return None


def _where(err: BaseException) -> str:
    """Return our functions that the error came through, such as `keep > sum_over_ranks`."""
    frames = traceback.extract_tb(err.__traceback__)
    names = [frame.name for frame in frames if PACKAGE in Path(frame.filename).parents]
    return " > ".join(names[-3:])
