"""The conversation between `tools/bench.py step` and the process of one way to train."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

LEARNING_RATE = 5e-5
STEPS = 10**6  # more than anybody waits for
NUM_COMPARED = 4  # samples whose loss is compared


class Job(NamedTuple):
    """What to train on and how.

    raw       folder of captures
    shards    the same captures as a dataset
    lossless  the same, with images that are not compressed
    """

    model: str
    raw: str
    shards: str
    lossless: str
    size: tuple[int, int]
    near_mm: float
    far_mm: float
    deepspeed: str
    precision: str
    micro_batch: str
    compile: bool

    @property
    def batch(self) -> int:
        """The global batch."""
        return int(json.loads(Path(self.deepspeed).read_text(encoding="utf-8"))["train_batch_size"])


class Turns:
    """The conversation with the process that measures.

    For each turn that one sends a line, which names what to do, and gets back a line of JSON.

    files   a step, data read as this path reads them
    memory  a step, on data that were read before
    data    only reading
    parts   a step as with files, and the time of its parts, for which a GPU has to be waited for
    """

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not mix with the answers
        self.wanted = ""
        self.parts: dict[str, float] = {}
        self.start = self.cpu_start = 0.0

    def send(self, **values: Any) -> None:
        """Write a line of JSON."""
        print(json.dumps(values), file=self.out, flush=True)

    def begin(self) -> bool:
        """Wait for the next turn, return whether there is one."""
        self.wanted = sys.stdin.readline().strip()
        self.parts = {}
        self.start = time.perf_counter()
        self.cpu_start = time.process_time()
        return bool(self.wanted)

    def end(self, steps: int = 1, **values: Any) -> None:
        """Send how long this turn took for each of its `steps` global batches."""
        wait_for_gpu()
        seconds = time.perf_counter() - self.start
        cpu_seconds = time.process_time() - self.cpu_start
        self.send(
            seconds=seconds / steps,
            cpu_seconds=cpu_seconds / steps,
            parts=self.parts,
            memory_gib=memory_gib(),
            **values,
        )

    def clock(self, owner: Any, method: str, part: str) -> None:
        """Replace a method by one that adds its time to `parts`, in turns that want them."""
        function = getattr(owner, method)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            if self.wanted != "parts":
                return function(*args, **kwargs)
            wait_for_gpu()
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait_for_gpu()
                self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - start

        setattr(owner, method, clocked)


def wait_for_gpu() -> None:
    """Wait until the GPU has done all that it was given, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_gib() -> float:
    """Return the peak so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
