"""Worker processes that measure images, with a bound on how many images wait for them.

with WorkerPool(workers=0, num_jobs=12) as pool:
    future = pool.submit(measure_image, preds, truth, options)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from threading import BoundedSemaphore
from typing import ParamSpec, TypeVar

import torch

from depthdist.core.environment import count_workers, open_pool

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool:
    """Calls functions in worker processes, one thread each, or in this one.

    workers   processes, 0: one a core, 1: in this process
    num_jobs  how many calls there will be; no more processes are started
    """

    def __init__(self, workers: int, num_jobs: int):
        self.workers = count_workers(workers, num_jobs)
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self.workers > 1:
            self.pool = open_pool(self.workers, torch.set_num_threads, 1)
        # limits the images that wait or are measured: their maps are large
        self.places = BoundedSemaphore(2 * self.workers)
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[P, T], *args: P.args, **settings: P.kwargs) -> Future[T]:
        """Return what a call of `function` will return; wait while too many calls are open."""
        if not self.pool:
            future: Future[T] = Future()
            future.set_result(function(*args, **settings))
            return future
        self.places.acquire()
        future = self.pool.submit(function, *args, **settings)
        future.add_done_callback(lambda _: self.places.release())
        return future
