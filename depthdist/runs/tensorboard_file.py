"""TensorBoard's event files, written by the caller's own thread.

torch's SummaryWriter writes in a thread of its own: when the disk is full, that one dies with a
traceback, and the run learns of it two minutes later.

    curves = EventFile(run / "tensorboard", first_step=0)
    curves.add(scalar("train/loss", 0.5), step=1)      # torch.utils.tensorboard.summary has more
    curves.flush()
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from depthdist.core.files import append

SECONDS_BETWEEN_WRITES = 10.0
PREFIX = "events.out.tfevents."


class EventFile:
    """A new event file in `folder`, which TensorBoard shows together with the earlier ones.

    first_step  points from this step on that stand in earlier files are hidden
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in this order: two starts in one second must differ
        began = max(int(time.time()), 1 + _latest_start(folder))
        self.path = folder / f"{PREFIX}{began:010d}.{socket.gethostname()}.{os.getpid()}"
        self.waiting = io.BytesIO()
        self.written_at = 0.0
        self._add(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=first_step, session_log=start))
        self.flush()

    def add(self, summary: Any, step: int = 0) -> None:
        """Add a summary; it is on the disk after some seconds, or after `flush`.

        raises CannotWrite
        """
        self._add(Event(summary=summary, step=step))
        if time.monotonic() - self.written_at >= SECONDS_BETWEEN_WRITES:
            self.flush()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        RecordWriter(self.waiting).write(event.SerializeToString())

    def flush(self) -> None:
        """Write what is waiting; raise CannotWrite."""
        content = self.waiting.getvalue()
        self.waiting = io.BytesIO()
        self.written_at = time.monotonic()
        append(self.path, content)


def _latest_start(folder: Path) -> int:
    """Return the second in the name of the newest event file, 0 without one."""
    words = [path.name.removeprefix(PREFIX).split(".")[0] for path in folder.glob(f"{PREFIX}*")]
    return max((int(word) for word in words if word.isdecimal()), default=0)
