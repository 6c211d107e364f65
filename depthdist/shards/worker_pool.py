"""Write shards in parallel: one process per shard, with progress and one-line errors.

    write_shards(jobs, workers, ranks)

Workers never outlive the command: they stop at the next pair when a job has failed or Ctrl-C was
pressed, and at once when the command itself was killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from typing import Any

from tqdm import tqdm

from depthdist.core.environment import (
    count_workers,
    no_signals_to_children,
    no_workers,
    open_pool,
    start_worker,
)
from depthdist.core.stop_signals import leave_if_stopped
from depthdist.distributed.cpu_group import MEANWHILE, CpuGroup
from depthdist.shards.format import Job
from depthdist.shards.writer import write_shard

_SHARED: Any = None  # in a worker: [samples, raw bytes, rejects, stop], of all workers together


class _Stopped(Exception):
    """Another worker failed, or Ctrl-C was pressed."""


def write_shards(jobs: list[Job], workers: int, ranks: CpuGroup) -> None:
    """Write every job's shard.

    raises ValueError, one line, when a shard cannot be written or a worker was killed; Stopped
    after a stop request
    """
    if not jobs:
        return
    shared = _shared_counts(multiprocessing.get_context("spawn"))
    num_pairs = sum(len(job.items) for job in jobs)
    pool = open_pool(count_workers(workers, len(jobs), ranks.local_size), _start, shared)
    try:
        with _bar(num_pairs, ranks) as bar:
            with _no_interrupt():
                waiting = {pool.submit(_work, job) for job in jobs}  # starts the workers
            while waiting:
                leave_if_stopped(MEANWHILE)
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                samples, num_bytes, rejects, _ = shared[:]
                mb_per_s = num_bytes / 1e6 / max(1e-9, bar.format_dict["elapsed"])
                bar.set_postfix_str(f"{mb_per_s:.0f} MB/s, {rejects} rejects", refresh=False)
                bar.update(samples + rejects - bar.n)
                for future in done:
                    future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker process was killed (out of memory?); finished shards are kept: run again,"
            " with fewer --workers"
        ) from None
    finally:
        shared[3] = 1
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, which reaches the whole group: the command stops them.

    They inherit the signal mask, from their first instruction on. Other threads of this process do
    not have it, so the handler only records the signal until all are started: a worker interrupted
    at its start would print a traceback.
    """
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        with no_signals_to_children():
            yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _shared_counts(context: SpawnContext) -> Any:
    """Return the array of _SHARED."""
    try:
        return context.Array("q", 4)
    except (ImportError, OSError) as err:  # no /dev/shm, or no right to start a process
        raise ValueError(no_workers(err)) from err


def _bar(total: int, ranks: CpuGroup) -> tqdm:
    live = sys.stderr.isatty()
    name = "sharding" if ranks.size == 1 else f"sharding, rank 0 of {ranks.size}"
    return tqdm(
        total=total,
        desc=name,
        unit=" pairs",
        mininterval=0.2 if live else 10,
        dynamic_ncols=live,
        disable=ranks.rank > 0,
    )


def _start(shared: Any) -> None:
    global _SHARED
    _SHARED = shared
    start_worker()


def _report(samples: int, num_bytes: int, rejects: int) -> None:
    with _SHARED.get_lock():
        for i, more in enumerate((samples, num_bytes, rejects)):
            _SHARED[i] += more
        if _SHARED[3]:
            raise _Stopped


def _work(job: Job) -> None:
    with contextlib.suppress(_Stopped):
        write_shard(job, _report)
