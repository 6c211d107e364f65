"""Print a warning when no sample comes: which sample, which download, where its threads are.

with SlowReaderWarning(dataset, "train", stall=60.0) as watch:      # a thread
    with watch.waiting_for(group):
        ...                                         # wait for that group
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from depthdist.data.dataset import Dataset
from depthdist.data.sample_order import MicroBatchPlan


class SlowReaderWarning:
    """While entered, a thread that prints a warning each `stall` seconds without a sample."""

    def __init__(self, dataset: Dataset, split: str, stall: float):
        self.dataset = dataset
        self.split = split
        self.stall = stall
        self.group: MicroBatchPlan | None = None
        self.waiting_since = 0.0  # 0: not waiting
        self.ended = threading.Event()

    def __enter__(self) -> SlowReaderWarning:
        self.thread = threading.Thread(target=self._watch, name="decode-watch", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        self.thread.join()

    @contextmanager
    def waiting_for(self, group: MicroBatchPlan | None) -> Iterator[None]:
        """Enter while that group is waited for, or any if it is None."""
        self.group = group
        self.waiting_since = time.monotonic()
        try:
            yield
        finally:
            self.waiting_since = 0.0

    def _watch(self) -> None:
        warned_at = 0.0
        while not self.ended.wait(min(1.0, self.stall / 4)):
            since = self.waiting_since
            now = time.monotonic()
            if since and now - max(since, warned_at) >= self.stall:
                warned_at = now
                print(
                    f"WARNING      no sample for {now - since:.0f} s; waiting for"
                    f" {self._describe()}",
                    file=sys.stderr,
                    flush=True,
                )

    def _describe(self) -> str:
        """Return the samples that are waited for, their downloads, and what the threads run."""
        if self.group is None:
            return f"a worker process that decodes {self.split} samples"
        samples = []
        for slot in self.group.slots:
            index, ref = self.dataset.find(self.split, slot.sample)
            download = index.cache.status(index.url(ref.number)) if index.cache else ""
            status = f", {download}" if download else ""
            samples.append(f"sample {ref.key} ({ref.stem}) of {ref.shard}{status}")
        functions = _running_functions()
        threads = f"; its threads are in {', '.join(functions)}" if functions else ""
        return "; ".join(samples) + threads


def _running_functions() -> list[str]:
    """Return the functions that the decode threads of this process are in."""
    frames = sys._current_frames()
    decoders = [t.ident for t in threading.enumerate() if t.name.startswith("decode_")]
    return sorted({_function_of(frames[i]) for i in decoders if i is not None and i in frames})


def _function_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"
