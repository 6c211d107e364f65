"""Decode batches ahead in threads, into a ring of buffers that are used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from depthdist.data.batch import Buffers, EncodedBatch, ReadSample
from depthdist.data.sample_order import MicroBatchPlan
from depthdist.data.sample_reader import SampleReader
from depthdist.data.slow_reader import SlowReaderWarning


class _Pending(NamedTuple):
    """A batch that threads are decoding."""

    group: MicroBatchPlan
    buffers: Buffers
    futures: list[Future[ReadSample]]


class DecodeThreads:
    """A pipeline stage: groups in, encoded batches out, in the same order.

    rings     rings of buffers that no iterator uses
    new_ring  makes another one
    """

    def __init__(
        self,
        reader: SampleReader,
        num_threads: int,
        stall_s: float,
        rings: list[list[Buffers]],
        new_ring: Callable[[], list[Buffers]],
    ):
        self.reader = reader
        self.num_threads = num_threads
        self.stall_s = stall_s
        self.rings = rings
        self.new_ring = new_ring

    def __call__(self, groups: Generator[MicroBatchPlan, None, None]) -> Iterator[EncodedBatch]:
        """Yield each group's batch, which is valid until the next one is requested."""
        ring = self.rings.pop() if self.rings else self.new_ring()
        free = deque(ring)
        waiting: deque[_Pending] = deque()
        with (
            closing(groups),
            ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool,
            SlowReaderWarning(self.reader.dataset, self.reader.split, self.stall_s) as watch,
        ):
            try:
                for group in groups:
                    waiting.append(self._begin(pool, group, free.popleft()))
                    if len(waiting) == len(ring) - 1:
                        batch = self._end(waiting.popleft(), watch)
                        yield batch
                        batch.stale = True
                        free.append(batch.buffers)
                while waiting:
                    batch = self._end(waiting.popleft(), watch)
                    yield batch
                    batch.stale = True
            finally:
                for pending in waiting:
                    for future in pending.futures:
                        future.cancel()
        self.rings.append(ring)  # not after an error: a thread may be writing to it

    def _begin(self, pool: ThreadPoolExecutor, group: MicroBatchPlan, buffers: Buffers) -> _Pending:
        if buffers.copied is not None:
            buffers.copied.synchronize()
        futures = [
            pool.submit(self.reader, slot, group.epoch, buffers.row(i))
            for i, slot in enumerate(group.slots)
        ]
        return _Pending(group, buffers, futures)

    def _end(self, pending: _Pending, watch: SlowReaderWarning) -> EncodedBatch:
        with watch.waiting_for(pending.group):
            loaded = [future.result() for future in pending.futures]
        width = self.reader.dataset.depth_size.width
        return EncodedBatch(pending.buffers, loaded, pending.group, width)
