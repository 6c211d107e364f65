"""End all ranks of a run within seconds when one fails, with its error last on the screen.

    watch = FailureWatch(rank, places, store, timeout)  # two threads, until `part`
    with watch.exchanging():                # this rank waits for the others, until the end of it
        dist.all_reduce(values)
    shown = watch.judge(err, 2, "bad shard")  # this rank failed: is its error the first of the run?
    watch.end()                               # repeat the first error, and exit

A rank that fails leaves a report in the store where the ranks met. Every rank's FailureWatch looks
for such a report, and for processes of its machine that are gone without one: when a rank is
killed, the others leave a report for it. Every rank also gives a sign of life; rank 0, which serves
the store, leaves a report for one that is silent, and a rank that gets no answer from the store
ends. Whoever finds a report ends soon, even while its main thread waits for the others; one rank on
each machine repeats the report.
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch.distributed as dist

from depthdist.core.command import FAILED, INTERRUPTED, STOPPED, stop_code
from depthdist.core.errors import one_line
from depthdist.core.stop_signals import end_on_sigterm, note_stop, stop_signal
from depthdist.distributed.failure_report import (
    GONE,
    FailureReport,
    exit_at_once,
    is_running,
    show,
)
from depthdist.distributed.lost_machine import end_shell_to
from depthdist.distributed.meeting import RankPlace

POLL_S = 0.25  # between two looks at the other ranks
GRACE_S = 4.0  # for a rank to end by itself after another one failed
BEAT_S = 2.0  # from one sign of life to the next
LONGEST_SILENCE_S = 90.0  # of a rank, whatever the timeout: its interpreter may be held up
SILENT = "no sign of life for {:.0f} s: its machine or the network is gone, or it was stopped"
PACKAGE = Path(__file__).parents[1]


class FailureWatch(threading.Thread):
    """End this rank soon after another one failed.

    rank, places  this rank, and where each rank runs
    store       torch.distributed.Store of this meeting alone, not used elsewhere in this process
    timeout     seconds that a rank waits for the others
    kept        what is kept however the ranks end, as the last line says: then a rank may be slow
                for days, and a request to stop that one gets ends all, whatever they do.
                "" where they save before they stop

    In the store: `word` the first failure; `heard/R` R knows it; `call` a rank is missing; `here/R`
    what R does; `beat/R` its sign of life; `done/R` R waits for all to be done; `left/R` R watches
    no more; `stop` who asked a rank to save and stop.
    """

    def __init__(
        self,
        rank: int,
        places: Sequence[RankPlace],
        store: Any,
        timeout: float,
        kept: str = "",
    ):
        super().__init__(daemon=True)
        self.rank = rank
        self.size = len(places)
        self.store = store
        self.timeout = timeout
        self.kept = kept
        self.patience = math.inf if kept else timeout
        self.silence = min(LONGEST_SILENCE_S, timeout)
        self.report: FailureReport | None = None
        self.waiting_since: float | None = None
        self.parted = threading.Event()
        self.ending = threading.Lock()
        self.names = [f"rank {r} on {p.host} (pid {p.pid})" for r, p in enumerate(places)]
        here = places[rank].space
        self.pids = {r: place.pid for r, place in enumerate(places) if place.space == here}
        self.answered = time.monotonic()  # when the store last did
        self.next_beat = 0.0
        self.beats: dict[int, tuple[bytes, float]] = {}  # of each rank, and since when
        self.stop_is_shared = False
        self.is_done = False
        self.has_said = False  # what this rank ends for
        self.before = end_on_sigterm(self._terminated)
        self.start()
        threading.Thread(target=self._watch_the_store, daemon=True).start()

    def run(self) -> None:
        """Look for failures until all have parted; end this process after the first one."""
        while not self.parted.wait(POLL_S):
            if self.look():
                time.sleep(GRACE_S)
                self.end()
            self.answered = time.monotonic()
            # gloo's exchanges fail by themselves; NCCL's never do
            since = self.waiting_since
            if since and time.monotonic() > since + self.patience + GRACE_S:
                self._find_missing_rank(f"waited in vain for the other ranks in {_main_place()}")

    def _watch_the_store(self) -> None:
        """End this process when the store has not answered for long: asking it has no limit."""
        last = time.monotonic()
        while not self.parted.wait(1):
            now = time.monotonic()
            if now - last > self.silence / 2:  # this process was stopped, and goes on
                self.answered = now
            last = now
            silent = now - self.answered
            if silent > self.silence + GRACE_S:  # also where a report was found since
                self.report = self.report or self._of_lost(0, SILENT.format(silent))
                self.end()

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Take this rank for one that waits for the others while entered."""
        outer = self.waiting_since
        self.waiting_since = outer or time.monotonic()
        try:
            yield
        finally:
            self.waiting_since = outer

    def look(self) -> FailureReport | None:
        """Return the report of the first rank that failed, or one for a rank that is gone."""
        if self.report:
            return self.report
        # before the store is asked: whoever leaves a report does so while it runs
        gone = [rank for rank, pid in self.pids.items() if not is_running(pid)]
        try:
            self._share_stop()
            if self.store.check(["call"]):
                self.store.set(f"here/{self.rank}", self._what_it_does())
            if self.store.check(["word"]):
                self._receive(self.store.get("word"))
            elif lost := self._without("done", gone):
                self.leave_report(self._of_lost(lost[0]))
            elif time.monotonic() > self.next_beat:
                self.next_beat = time.monotonic() + BEAT_S
                self._give_sign_of_life()
        except RuntimeError:  # the store ended with rank 0
            self.report = self._of_lost(0)
        return self.report

    def _give_sign_of_life(self) -> None:
        """Let rank 0 know that this rank runs; as rank 0 look at the others' signs."""
        if self.rank:
            self.store.set(f"beat/{self.rank}", str(time.monotonic()))
            return
        now = time.monotonic()
        if now - self.answered > self.silence / 2:  # this process was stopped: so it saw none
            self.beats.clear()
        for other in range(1, self.size):
            key = f"beat/{other}"
            beat = self.store.get(key) if self.store.check([key]) else b""
            before, since = self.beats.get(other, (None, now))
            self.beats[other] = (beat, since if beat == before else now)
            silent = now - self.beats[other][1]
            if silent > self.silence and self._without("left", [other]):
                self.leave_report(self._of_lost(other, SILENT.format(silent)))
                return

    def _what_it_does(self) -> str:
        """Return, as JSON, the place where the main thread hangs; "" where it waits for others."""
        return json.dumps("" if self.waiting_since else _main_place())

    def leave_report(self, report: FailureReport) -> None:
        """Make it the report of this run, unless there is one already."""
        self._receive(self.store.compare_set("word", "", report.to_store()))

    def _of_lost(self, rank: int, text: str = GONE) -> FailureReport:
        """Return the report that others leave for a rank that cannot do so itself."""
        return FailureReport(rank, FAILED, self._with_kept(text))

    def _with_kept(self, text: str) -> str:
        return f"{text} ({self.kept})" if self.kept else text

    def _share_stop(self) -> None:
        """Let every rank know of a request to stop that one of them got."""
        if self.stop_is_shared:
            return
        if self.store.check(["stop"]):
            note_stop(self.store.get("stop").decode())
        elif stop_signal():
            self.store.set("stop", stop_signal())
        self.stop_is_shared = bool(stop_signal())
        if self.stop_is_shared and self.kept and not self.is_done:
            text = self._with_kept(f"stopped by {stop_signal()}")
            self.leave_report(FailureReport(self.rank, stop_code(stop_signal()), text))

    def _receive(self, word: bytes) -> None:
        self.report = FailureReport.from_store(word)
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
            self._find_missing_rank(text)
        mine = FailureReport(self.rank, code, one_line(text))
        if not self.look():
            self.leave_report(mine)
        assert self.report
        is_first = self.report.rank == self.rank
        is_same = not exchange and self.report.text == mine.text
        if is_same:
            self.report = mine
        follows = bool(exchange) or is_same
        self.has_said = is_first or not follows
        return text if self.has_said else ""

    def _find_missing_rank(self, text: str) -> None:
        """Wait for the report of the missing rank; leave one for a rank that does not answer.

        And for one that answers, but does not wait for the others as this one does: it hangs.

        text  what this rank waited for
        """
        deadline = time.monotonic() + GRACE_S
        try:
            if not self.look():
                self.store.set("call", "")
            while not self.look() and time.monotonic() < deadline:
                time.sleep(POLL_S / 5)
            if self.report:
                return
            if lost := self._without("here", range(self.size)):
                self.leave_report(self._of_lost(lost[0]))
                return
            for other in range(self.size):
                place = json.loads(self.store.get(f"here/{other}"))
                if other != self.rank and place and not self.kept:
                    self.leave_report(FailureReport(other, FAILED, self._describe(place, text)))
                    return
            found = self._with_kept(text) if self.kept else f"{text}; all ranks wait"
            self.leave_report(FailureReport(self.rank, FAILED, found))
        except RuntimeError:
            self.look()

    def _describe(self, place: str, text: str) -> str:
        return (
            f"hangs in {place}, or is slow and needs a longer DEPTHDIST_TIMEOUT than"
            f" {self.timeout:g} s: rank {self.rank} {text}"
        )

    def end(self) -> NoReturn:
        """Exit at once, with the report of the run last on the screen.

        The interpreter's own end would wait for threads and for NCCL.
        """
        self.ending.acquire()  # never released: one thread ends this process
        assert self.report
        line = f"{self.names[self.report.rank]}: {self.report.text}"
        if self.kept and self.report.code in (STOPPED, INTERRUPTED):  # nobody's failure
            if self.rank == 0 and not self.has_said:
                show(self.report.text)
        else:
            if self.rank == min(set(self.pids) - {self.report.rank}, default=None):
                show(line)
            if self.report.rank not in self.pids:
                end_shell_to(self.report.rank)
        if self.rank == 0:  # the store ends with this process
            self._await("heard", set(range(self.size)) - {0, self.report.rank}, GRACE_S)
        exit_at_once(self.report.code, line)

    def end_stopped(self) -> NoReturn:
        """Exit at once after Stopped, which rank 0 has shown; only where something is `kept`."""
        self.has_said = True
        self.look()
        self.end()

    def part(self) -> None:
        """Wait until all ranks are done, then stop to watch; raise ValueError if one is missing.

        Rank 0 leaves last, as the store ends with it.
        """
        self.is_done = True
        self.store.set(f"done/{self.rank}", "")
        if lost := self._await("done", range(self.size), self.patience):
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
    return _our_functions(traceback.extract_tb(err.__traceback__))


def _main_place() -> str:
    """Return where the main thread is: our last functions, or where there are none, the last."""
    number = threading.main_thread().ident
    frame = sys._current_frames().get(number) if number else None
    frames = traceback.extract_stack(frame)
    return _our_functions(frames) or _last_functions(frames)


def _our_functions(frames: traceback.StackSummary) -> str:
    return _last_functions([f for f in frames if PACKAGE in Path(f.filename).parents])


def _last_functions(frames: Sequence[traceback.FrameSummary]) -> str:
    names = [frame.name for frame in frames if frame.name != FailureWatch.exchanging.__name__]
    return " > ".join(names[-3:])
