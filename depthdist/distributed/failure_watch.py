"""How a run of several ranks ends when one of them fails: on all ranks, within seconds, with its
error last on the screen.

    # a thread, from when the ranks met until `part`, when all are done
    watch = Watch(rank, size, store, patience)
    # this rank failed: is its error the first, or does it follow from another's?
    shown = watch.judge(err, 2, "bad shard")
    watch.end()                                     # repeat the first error, and leave

A rank that fails leaves a word in the store where the ranks met. Every rank's Watch looks for such
a word, and for processes of its machine that are gone without one: when a rank is killed, the
others leave a word for it. Whoever finds one ends, soon, also where its main thread waits for the
others in vain; one rank on each machine repeats it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil
import torch.distributed as dist

from depthdist.core.errors import one_line

POLL, GRACE = (
    0.25,
    4.0,
    # seconds: between two looks at the other ranks; for a rank to end by itself when it hears that
    # another failed
)
GONE = "gone without a word: killed, out of memory?"


class FailureReport(NamedTuple):
    """What a rank leaves when it fails, or others leave for it: its exit code, and its error in one
    line.
    """

    rank: int
    code: int
    text: str


class FailureWatch(threading.Thread):
    """Ends this rank soon after another one failed.

    rank, size  this rank, of how many
    store       of this meeting alone, and not used elsewhere in this process
    patience    seconds that a rank waits for the others

    In the store: `who/R` where rank R runs; `word` the first failure; `heard/R` R knows it; `call`
    somebody misses a rank; `here/R` R is not the one; `done/R` R waits for all to be done; `left/R`
    R watches no more.
    """

    def __init__(self, rank: int, size: int, store: dist.Store, patience: float):
        super().__init__(daemon=True)
        self.rank, self.size, self.store, self.patience = rank, size, store, patience
        self.word, self.parted, self.ending = None, threading.Event(), threading.Lock()
        # a process id means something to those that see the same processes: of one machine since it
        # started, in the same container
        here = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink(
            "/proc/self/ns/pid"
        )
        self.store.set(f"who/{rank}", json.dumps([socket.gethostname(), os.getpid(), here]))
        who = [json.loads(self.store.get(f"who/{other}")) for other in range(size)]
        self.names = [
            f"rank {other} on {host} (pid {pid})" for other, (host, pid, _) in enumerate(who)
        ]
        self.pids = {other: pid for other, (_, pid, place) in enumerate(who) if place == here}
        self.before = signal.signal(signal.SIGTERM, self._terminated)
        self.start()

    def run(self) -> None:
        while not self.parted.wait(POLL):
            if self.look():
                time.sleep(GRACE)
                self.end()

    def look(self) -> FailureReport | None:
        """What the first rank that failed left, or what is to be said of one that is gone."""
        if self.word:
            return self.word
        gone = [
            rank for rank, pid in self.pids.items() if not _runs(pid)
        ]  # before the store is asked: whoever leaves a word does so while it runs
        try:
            if self.store.check(["call"]):
                self.store.set(f"here/{self.rank}", "")
            if self.store.check(["word"]):
                self._hear(self.store.get("word"))
            elif lost := self._without("done", gone):
                self.leave(lost[0], 1, GONE)
        except RuntimeError:  # the store ended with rank 0
            self.word = FailureReport(0, 1, GONE)
        return self.word

    def leave(self, *word: Any) -> None:
        """Make it the word of this run, unless there is one already."""
        self._hear(self.store.compare_set("word", "", json.dumps(word)))

    def _hear(self, word: bytes) -> None:
        self.word = FailureReport(*json.loads(word))
        self.store.set(f"heard/{self.rank}", "")

    def judge(self, err: BaseException, code: int, text: str) -> str:
        """How to show this rank's own error, of that text: "" where it only follows from another
        rank's end, or another rank has said the same.
        """
        waited = _waited(err)
        if waited:
            why = re.sub(r"^\[\S+\] ", "", one_line(waited))  # without the place in gloo's source
            text = f"waited in vain for the other ranks in {_where(err)}: {why}"
            if "Timed out" in text:
                text += "; one of them hangs, or is slow and needs a longer DEPTHDIST_TIMEOUT"
            self._find()
        mine = FailureReport(self.rank, code, one_line(text))
        if not self.look():
            self.leave(*mine)
        first, same = self.word.rank == self.rank, not waited and self.word.text == mine.text
        if same:
            self.word = mine
        return text if first or not (waited or same) else ""

    def _find(self) -> None:
        """Wait for the word of the rank that is missing.

        Leave one for a rank that does not even say that it is here.
        """
        deadline = time.monotonic() + GRACE
        try:
            if not self.look():
                self.store.set("call", "")
            while not self.look() and time.monotonic() < deadline:
                time.sleep(POLL / 5)
            if not self.word and (lost := self._without("here", range(self.size))):
                self.leave(lost[0], 1, GONE)
        except RuntimeError:
            self.look()

    def end(self) -> NoReturn:
        """Leave the run that failed, with its word last on the screen: at once, as the
        interpreter's own end would wait for threads and for NCCL.
        """
        self.ending.acquire()  # never released: one thread ends this process
        line = f"{self.names[self.word.rank]}: {self.word.text}"
        if self.rank == min(set(self.pids) - {self.word.rank}, default=None):
            print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's last words show it
            Path(file).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
        sys.stdout.flush(), sys.stderr.flush()
        if self.rank == 0:  # the store ends with this process
            self._await("heard", set(range(self.size)) - {0, self.word.rank}, GRACE)
        os._exit(self.word.code)

    def part(self) -> None:
        """Wait until all are done, and watch no more.

        Rank 0 leaves last, as the store ends with it.
        """
        self.store.set(f"done/{self.rank}", "")
        if lost := self._await("done", range(self.size), self.patience):
            raise ValueError(
                f"all is done, but after {self.patience:g} s not on {self.names[lost[0]]};"
                " DEPTHDIST_TIMEOUT in the environment waits longer"
            )
        self.parted.set()
        self.join()
        signal.signal(signal.SIGTERM, self.before)
        self.store.set(f"left/{self.rank}", "")
        if self.rank == 0:
            self._await("left", range(self.size), self.patience)

    def _without(self, what: str, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if not self.store.check([f"{what}/{rank}"])]

    def _await(self, what: str, ranks: Iterable[int], seconds: float) -> list[int]:
        """The ranks of these that have not said so in that time."""
        deadline = time.monotonic() + seconds
        while (lacking := self._without(what, ranks)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return lacking

    def _terminated(self, number: int, frame: Any) -> None:
        """SIGTERM: mostly a launcher's, which ends the others after one failed.

        Then this rank ends anyway. Else somebody wants the run to end.
        """
        if not self.look():
            self.leave(self.rank, 128 + number, "stopped by SIGTERM")
            self.end()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _waited(err: BaseException | None) -> BaseException | None:
    """The failed exchange between ranks that the error is, or came from. gloo's are RuntimeErrors
    like any other.
    """
    while err and not (
        isinstance(err, RuntimeError)
        and (
            isinstance(err, dist.DistError)
            or re.search("gloo|nccl|Connection (closed|reset)|Broken pipe", str(err), re.I)
        )
    ):
        err = err.__cause__ or err.__context__
    return err


PACKAGE = Path(__file__).parents[1]


def _where(err: BaseException) -> str:
    """Our functions that the error came through, such as `keep > sum_over_ranks`: what was waited
    for.
    """
    names = [
        frame.name
        for frame in traceback.extract_tb(err.__traceback__)
        if PACKAGE in Path(frame.filename).parents
    ]
    return " > ".join(names[-3:])
