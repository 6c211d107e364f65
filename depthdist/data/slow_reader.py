"""What a reader waits for, said aloud when no sample comes: which sample, which download, where its
threads are.

with SlowReaderWarning(dataset, "train", stall=60.0) as watch:      # a thread
    with watch.over(group):
        ...                                             # wait for that group
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from depthdist.data.dataset import Dataset
from depthdist.data.sample_order import MicroBatchPlan


class SlowReaderWarning:
    """While entered, a thread that says what is waited for when no sample comes for `stall`
    seconds.
    """

    def __init__(self, dataset: Dataset, split: str, stall: float):
        self.dataset, self.split, self.stall = dataset, split, stall
        self.since, self.group, self.ended = 0.0, None, threading.Event()

    def __enter__(self) -> SlowReaderWarning:
        self.thread = threading.Thread(target=self._look, name="decode-watch", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *how: Any) -> None:
        self.ended.set()
        self.thread.join()

    def over(self, group: MicroBatchPlan | None) -> SlowReaderWarning._Over:
        """A context in which that group is waited for."""
        self.group = group
        return SlowReaderWarning._Over(self)

    class _Over:
        def __init__(self, watch: SlowReaderWarning):
            self.watch = watch

        def __enter__(self) -> None:
            self.watch.since = time.monotonic()

        def __exit__(self, *how: Any) -> None:
            self.watch.since = 0.0

    def _look(self) -> None:
        said = 0.0
        while not self.ended.wait(min(1.0, self.stall / 4)):
            since, now = self.since, time.monotonic()
            if since and now - max(since, said) >= self.stall:
                said = now
                print(
                    f"WARNING      no sample for {now - since:.0f} s; waiting for {self._what()}",
                    file=sys.stderr,
                    flush=True,
                )

    def _what(self) -> str:
        if self.group is None:
            return f"a worker process that decodes {self.split} samples"
        found = []
        for slot in self.group.slots:
            index, ref = self.dataset.find(self.split, slot.sample)
            status = index.cache.status(index.url(ref.number)) if index.cache else ""
            found.append(
                f"sample {ref.key} ({ref.stem}) of {ref.shard}{f', {status}' if status else ''}"
            )
        frames = sys._current_frames()
        at = [
            _innermost(frames[t.ident])
            for t in threading.enumerate()
            if t.name.startswith("decode_") and t.ident in frames
        ]
        return "; ".join(found) + (
            f"; its threads are in {', '.join(sorted(set(at)))}" if at else ""
        )


def _innermost(frame) -> str:
    return f"{frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"
