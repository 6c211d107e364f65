"""Verify the data before training (--verify-first): damage is known now, not in a later epoch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from depthdist.core.environment import local_rank, usable_cores
from depthdist.data.dataset import Dataset
from depthdist.distributed.process_group import (
    World,
    gather_from_all_ranks,
    stop_together,
    sum_over_ranks,
)
from depthdist.shards.verify import verify_dataset

SECONDS_BETWEEN_LINES = 10.0  # of progress
SECONDS_BETWEEN_LOOKS = 0.1  # of the ranks at each other


def verify_before_training(dataset: Dataset, world: World) -> None:
    """Read every byte of the local shards, one rank a machine with all its cores.

    Every rank must call it. raises ValueError with a line for each damage
    """
    began = time.monotonic()
    local = [part for part in dataset.parts if part.cache is None]
    total = sum(part.num_samples for part in local)
    if len(local) < len(dataset.parts) and world.rank == 0:
        print("verifying    remote shards: each is checked when it is fetched into the cache")
    mine = [part.place for part in local] if local_rank() == 0 else []
    seen: list[int] = []
    is_over = threading.Event()

    def count(num_samples: int) -> None:
        if is_over.is_set():
            raise RuntimeError("the command ends")
        seen.append(num_samples)

    def verify() -> list[str]:
        found = []
        for place in mine:
            found += [f"{place}: {line}" for line in verify_dataset(place, usable_cores(), count)]
        return found

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(verify)
        shown_at = began
        try:
            # the ranks ask each other all the time: none waits so long that it gives the others up
            while sum_over_ranks([not work.done()])[0]:
                stop_together("while the data was verified; the same command begins again")
                time.sleep(SECONDS_BETWEEN_LOOKS)
                if world.rank == 0 and time.monotonic() - shown_at > SECONDS_BETWEEN_LINES:
                    shown_at = time.monotonic()
                    print(f"verifying    {sum(seen):,} of {total:,} samples", flush=True)
        finally:
            is_over.set()  # Ctrl-C, or another rank that failed, does not wait for the last byte
        problems = [line for lines in gather_from_all_ranks(work.result()) for line in lines]
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    if world.rank == 0 and local:
        seconds = time.monotonic() - began
        print(f"verified     {total:,} samples, every byte, in {seconds:.1f} s", flush=True)
