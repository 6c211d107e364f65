"""Pass signals on from the process that runs DeepSpeed's launcher to the ranks.

    SignalRelay(launcher).start()     # in the main thread, before the ranks are started

A signal that comes while they are being started waits until they note signals: none ends them.
One to the whole process group reaches them twice, which counts once.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from contextlib import suppress
from types import FrameType

import psutil

from depthdist.core.stop_signals import note_stop, signal_name, stop_signal
from depthdist.distributed.launcher_process import (
    PASSED_ON,
    LauncherProcess,
    has_signal,
    signals_of,
)

POLL_S = 0.1
LOOK_S = 1.0  # between two looks at signals to the launcher


class SignalRelay(threading.Thread):
    """A thread that sends the ranks of this machine each signal that this process gets.

    Or the first one that the launcher gets, where this process got none.
    """

    def __init__(self, launcher: LauncherProcess) -> None:
        super().__init__(daemon=True)
        self.launcher = launcher
        self.signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in PASSED_ON:
            signal.signal(number, self._take)

    def run(self) -> None:
        """Send one signal after the other, for ever."""
        while True:
            try:
                number = self.signals.get(timeout=LOOK_S)
            except queue.Empty:
                number = 0 if stop_signal() else self.launcher.signal_sent()
                if not number:
                    continue
                note_stop(signal_name(number))
            self._send(number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        note_stop(signal_name(number))
        self.signals.put(number)

    def _send(self, number: int) -> None:
        """Send a signal to each rank as soon as it notes signals; wait until there are ranks."""
        has_it: set[psutil.Process] = set()
        while True:
            ranks = self.launcher.ranks()
            for rank in ranks:
                if rank not in has_it and notes_signals(rank.pid):
                    has_it.add(rank)
                    with suppress(psutil.NoSuchProcess):
                        rank.send_signal(number)
            if ranks and has_it.issuperset(ranks):
                return
            time.sleep(POLL_S)


def notes_signals(pid: int) -> bool:
    """Return whether a process has a handler for SIGUSR1, which would end it otherwise."""
    return has_signal(signals_of(pid, "SigCgt"), signal.SIGUSR1)
