"""Convert samples for one of the compared loaders, or measure it, in its own environment.

Run by `tools/bench.py data`, from the repository's root:

    PYTHON -m tools.benchmarks.measure_loader convert '{"loader": "litdata", "shards": "data/mine",
        "data": "data/mine_litdata", ...}'
    # a warm-up epoch, a timed one, one line of JSON
    PYTHON -m tools.benchmarks.measure_loader measure '{"loader": "litdata", ...}'
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.benchmarks.loaders import CONVERT, LOADERS, Job, depthdist


def measure(job: Job) -> dict[str, Any]:
    """Return the measurement of one epoch, after one to warm up; the loader is built anew for each.

    Half an epoch of the raw files warms up: it touches all different files.
    """
    sums: Counter[str] = Counter()

    def add_up(rgb: Any, depth: Any, mask: Any) -> None:
        if job.look:
            sums.update(totals(rgb, depth, mask))

    warm_up = job._replace(samples=-(-job.samples // 2)) if job.loader == "raw_path" else job
    epoch(warm_up, add_up)
    found = epoch(job, lambda *batch: None)
    found["delivered"] = dict(sums)
    if job.loader == "depthdist":
        start = time.perf_counter()
        next(depthdist(job, job.samples // 2))
        found["resume_s"] = time.perf_counter() - start
    return found


def epoch(job: Job, look: Callable[[Any, Any, Any], Any]) -> dict[str, Any]:
    """Return the times and sample counts of one epoch; `look` gets every rgb, depth and mask.

    CPU seconds are this process's and its workers', which are joined before the clock is read.
    """
    numbers: Counter[int] = Counter()
    first_batch_s = None
    cpu_before = cpu_seconds()
    start = time.perf_counter()
    for rgb, depth, mask, keys in LOADERS[job.loader](job):
        first_batch_s = first_batch_s or time.perf_counter() - start
        look(rgb, depth, mask)
        numbers.update(map(int, keys))
    seconds = time.perf_counter() - start
    gc.collect()
    for worker in multiprocessing.active_children():
        worker.join(20)
    return {
        "samples": numbers.total(),
        "lost": job.samples - len(numbers),
        "repeated": numbers.total() - len(numbers),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "first_batch_s": first_batch_s,
    }


def totals(rgb: Any, depth: Any, mask: Any) -> dict[str, int]:
    """Return sums over a batch: of the RGB, of depth in its stored steps, of the valid pixels."""
    rgb, depth, mask = (np.asarray(part) for part in (rgb, depth, mask))
    valid = mask.sum() if mask.dtype == bool else np.unpackbits(mask).sum()
    return {
        "rgb": int(rgb.sum(dtype=np.int64)),
        "depth": int(depth.sum(dtype=np.int64)),
        "valid": int(valid),
    }


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[2]))
    if sys.argv[1] == "measure":
        print(json.dumps(measure(job)))
    else:
        CONVERT[job.loader](job)
