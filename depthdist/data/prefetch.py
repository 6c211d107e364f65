"""Fetch the shards of the next samples before it is their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from depthdist.data.dataset import Dataset
from depthdist.data.sample_order import MicroBatchPlan
from depthdist.shards.index import Index

SAMPLES_AHEAD = 64  # samples whose shards are fetched before their turn

Shards = dict[tuple[str, int], Index]  # by the index's place and the shard's number in it


def fetch_ahead(
    dataset: Dataset, split: str, num_in_hand: int
) -> Callable[[Iterable[MicroBatchPlan]], Iterator[MicroBatchPlan]]:
    """Return a pipeline stage that has the shards of the next samples fetched ahead of time.

    Local data passes through.

    It looks SAMPLES_AHEAD samples ahead. Where shards are shuffled, also no further than the cache
    must have room for: two blocks of them, with those of the `num_in_hand` groups that it yielded
    last.
    """

    def is_far_enough(shards: Shards, num_samples: int, others: Iterable[Shards]) -> bool:
        if num_samples >= SAMPLES_AHEAD:
            return True
        return 0 < 2 * dataset.block < len(set(shards).union(*others))

    def stage(groups: Iterable[MicroBatchPlan]) -> Iterator[MicroBatchPlan]:
        if not dataset.remote:
            yield from groups
            return
        coming: deque[tuple[MicroBatchPlan, Shards]] = deque()
        reading: deque[Shards] = deque(maxlen=num_in_hand)
        pool = ThreadPoolExecutor(2, thread_name_prefix="fetch")
        try:
            for group in groups:
                shards = _remote_shards(dataset, split, group)
                while coming and is_far_enough(
                    shards, len(coming) * len(group.slots), (*reading, *(s for _, s in coming))
                ):
                    reading.append(coming[0][1])
                    yield coming.popleft()[0]
                known = set().union(*reading, *(s for _, s in coming))
                for place, number in set(shards) - known:
                    pool.submit(shards[place, number].shard_path, number)
                coming.append((group, shards))
            yield from (group for group, _ in coming)
        finally:
            # a reader that waits for a download reports its error; nobody would see it here
            pool.shutdown(wait=False, cancel_futures=True)

    return stage


def _remote_shards(dataset: Dataset, split: str, group: MicroBatchPlan) -> Shards:
    found = [dataset.find(split, slot.sample) for slot in group.slots]
    return {(index.place, ref.number): index for index, ref in found if index.cache}
