"""Verify the data before training (--verify-first): damage is known now, not in a later epoch."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from depthdist.core.environment import local_rank, usable_cores
from depthdist.data.dataset import Dataset
from depthdist.distributed.process_group import World, gather_from_all_ranks, sum_over_ranks
from depthdist.shards.remote_cache import is_remote
from depthdist.shards.verify import verify_dataset

SECONDS_BETWEEN_LINES = 10.0  # of progress
SECONDS_BETWEEN_LOOKS = 0.1  # of the ranks at each other


def verify_before_training(dataset: Dataset, world: World) -> None:
    """Read every byte of the local shards, one rank a machine with all its cores.

    Every rank must call it. raises ValueError with a line for each damage
    """
    began = time.monotonic()
    local = [place for place in dataset.places if not is_remote(place)]
    if len(local) < len(dataset.places) and world.rank == 0:
        print("verifying    remote shards: each is checked when it is fetched into the cache")
    seen: list[int] = []

    def verify_all() -> list[str]:
        found = []
        for place in local:
            found += [
                f"{place}: {line}" for line in verify_dataset(place, usable_cores(), seen.append)
            ]
        return found

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(verify_all if local_rank() == 0 else list)
        shown_at = began
        # the ranks ask each other all the time: none waits so long that it gives the others up
        while sum_over_ranks([not work.done()])[0]:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if world.rank == 0 and time.monotonic() - shown_at > SECONDS_BETWEEN_LINES:
                shown_at = time.monotonic()
                print(f"verifying    {len(seen):,} samples so far", flush=True)
        problems = [line for lines in gather_from_all_ranks(work.result()) for line in lines]
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    if world.rank == 0 and local:
        seconds = time.monotonic() - began
        print(f"verified     {len(seen):,} samples, every byte, in {seconds:.1f} s", flush=True)
