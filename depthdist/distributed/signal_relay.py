"""Pass signals on from the process that runs DeepSpeed's launcher to the ranks.

    SignalRelay().start()     # in the main thread, before the ranks are started

A signal that comes while they are being started waits until they note signals: none ends them.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from depthdist.core.stop_signals import note_stop, signal_name
from depthdist.distributed.launcher_watch import LAUNCH, launch_of, program_of

POLL_S = 0.1


class SignalRelay(threading.Thread):
    """A thread that sends the ranks of this machine each signal that this process gets."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._take)

    def run(self) -> None:
        """Send one signal after the other, for ever."""
        while True:
            send(self.signals.get())

    def _take(self, number: int, frame: FrameType | None) -> None:
        note_stop(signal_name(number))
        self.signals.put(number)


def send(number: int) -> None:
    """Send a signal to each rank as soon as it notes signals; wait until there are ranks."""
    has_it: set[psutil.Process] = set()
    while True:
        ranks = find_ranks()
        for rank in ranks:
            if rank not in has_it and notes_signals(rank.pid):
                has_it.add(rank)
                with suppress(psutil.NoSuchProcess):
                    rank.send_signal(number)
        if ranks and has_it.issuperset(ranks):
            return
        time.sleep(POLL_S)


def find_ranks() -> list[psutil.Process]:
    """Return the ranks on this machine that the launcher in this process has started.

    They are below DeepSpeed's module that starts those of one machine; over ssh that one is not
    below this process.
    """
    ranks: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        mine = {launch_of(child.cmdline()) for child in psutil.Process().children()} - {()}
        for process in psutil.process_iter(["cmdline"]) if mine else ():
            words = process.info["cmdline"] or ()
            if program_of(words)[0] == LAUNCH and launch_of(words) in mine:
                ranks += process.children()
    return ranks


def notes_signals(pid: int) -> bool:
    """Return whether a process has a handler for SIGUSR1, which would end it otherwise."""
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGUSR1 - 1) & 1)
    return False
