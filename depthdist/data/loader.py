"""Shards become batches: webdataset carries the samples through, threads decode them into buffers
that are used again.

    dataset = open_dataset(DataSettings(data=("data/tires",)))
    loader = Loader(dataset, settings)
    for packed in loader.train(plan, seed=0, rank=0, start=Position(), epochs=15):
        batch = packed.to(device)  # millimetres are made there; what goes over is uint8 and uint16
    # every sample exactly once
    for packed in loader.evaluate("val", micro_batch=1, rank=0, world=2): ...

Which sample comes when is arithmetic (sample_order.py); where its bytes are, the index knows. A batch as
it is stored is only valid until the next one is asked for: its buffers go round. Damage stops
everything, or is set aside, counted and reported.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch
import webdataset as wds

from depthdist.data.augmentation import AugmentSettings
from depthdist.data.batch import Buffers, EncodedBatch, Reader, _packed
from depthdist.data.dataset import Dataset, ReadSettings
from depthdist.data.sample_order import (
    BatchSlot,
    MicroBatchPlan,
    Position,
    TrainPlan,
    eval_groups,
    train_groups,
)
from depthdist.data.slow_reader import SlowReaderWarning

AHEAD = 64  # samples whose shards are fetched before their turn


# ------------------------------------------------------------------------------------------ batches


# --------------------------------------------------------------------------------------- one sample


# ------------------------------------------------------------------------------------------- loader


class Loader:
    """Batches of a dataset, for training and evaluation.

    device     where batches go: decides whether the buffers are pinned
    on_damage  hears of each damaged sample once: {split, sample, shard, key, stem, member, offset,
               reason}
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: ReadSettings = ReadSettings(),
        augment: AugmentSettings | None = None,
        device: torch.device | str = "cpu",
        on_damage: Callable[[dict[str, Any]], Any] = lambda facts: print(
            f"WARNING      damaged: {facts}", file=sys.stderr
        ),
    ):
        self.dataset, self.settings, self.augment, self.on_damage = (
            dataset,
            settings,
            augment,
            on_damage,
        )
        self.pin = torch.device(device).type == "cuda"
        self.damaged: dict[str, set[int]] = {}  # by split
        self._free: dict[
            int, list[list[Buffers]]
        ] = {}  # rings that no iterator uses, by micro-batch

    def train(
        self,
        plan: TrainPlan,
        seed: int,
        rank: int,
        start: Position = Position(),
        epochs: int | None = None,
    ) -> Iterable[EncodedBatch]:
        """A rank's micro-batches from `start` to the end of that many epochs (or for ever), read
        ahead across their ends.
        """
        order, reader = (
            self.dataset.order(seed),
            self._reader("train", augment=self.augment, seed=seed),
        )
        return self._pipeline(
            lambda: train_groups(order, plan, rank, start, epochs),
            reader,
            plan.micro_batch,
            self.settings.processes,
        )

    def evaluate(
        self, split: str, micro_batch: int, rank: int, world: int
    ) -> Iterable[EncodedBatch]:
        """A rank's batches of a split, unshuffled: over all ranks every sample has weight 1 exactly
        once (0 where it is damaged).
        """
        count = self.dataset.count(split)
        return self._pipeline(
            lambda: eval_groups(count, micro_batch, rank, world), self._reader(split), micro_batch
        )

    def samples(self, split: str, numbers: Iterable[int]) -> EncodedBatch:
        """Those samples of a split as one batch, in that order."""
        group, reader = (
            MicroBatchPlan([BatchSlot(number, 1.0) for number in numbers]),
            self._reader(split),
        )
        return _packed(reader, group, Buffers(self.dataset.arrays(len(group.slots)), self.pin))

    def memory_bytes(self, micro_batch: int) -> int:
        """Most that batches on their way take, of training and of an evaluation meanwhile, and a
        picture that each thread or process is at work on.
        """
        sample = sum(array.nbytes for array in self.dataset.arrays())
        workers = [
            (processes, processes or self.settings.num_threads)
            for processes in (self.settings.processes, 0)
        ]
        return (
            sum(
                self._num_batches(micro_batch, processes) * micro_batch + number
                for processes, number in workers
            )
            * sample
        )

    def _num_batches(self, micro_batch: int, processes: int = 0) -> int:
        """Threads: one in the reader's hands, one ready, what they are at work on.

        Processes: two each, one on its way to here.
        """
        return (
            3 * processes + 2 if processes else 2 + -(-2 * self.settings.num_threads // micro_batch)
        )

    def _reader(self, split: str, **how: Any) -> Reader:
        return Reader(
            self.dataset,
            split,
            self.settings.damaged,
            known=self.damaged.setdefault(split, set()).copy(),
            **how,
        )

    def _pipeline(
        self,
        groups: Callable[[], Iterator[MicroBatchPlan]],
        reader: Reader,
        micro_batch: int,
        processes: int = 0,
    ) -> wds.DataPipeline:
        fetched = _fetch_ahead(
            self.dataset, reader.split, self._num_batches(micro_batch, processes)
        )
        decoded = (
            self._in_processes(reader, processes)
            if processes
            else self._in_threads(reader, micro_batch)
        )
        return wds.DataPipeline(groups, fetched, decoded, self._accounted(reader.split))

    def _watch(self, split: str) -> SlowReaderWarning:
        return SlowReaderWarning(self.dataset, split, self.settings.stall)

    # ---- threads

    def _in_threads(
        self, reader: Reader, micro_batch: int
    ) -> Callable[[Iterable[MicroBatchPlan]], Iterator[EncodedBatch]]:
        """A stage that decodes in threads into a ring of buffers, and keeps the order."""

        def stage(groups: Generator[MicroBatchPlan]) -> Iterator[EncodedBatch]:
            rings = self._free.setdefault(micro_batch, [])
            ring = (
                rings.pop()
                if rings
                else [
                    Buffers(self.dataset.arrays(micro_batch), self.pin)
                    for _ in range(self._num_batches(micro_batch))
                ]
            )
            free, waiting = deque(ring), deque()
            with (
                closing(groups),
                ThreadPoolExecutor(self.settings.num_threads, thread_name_prefix="decode") as pool,
                self._watch(reader.split) as watch,
            ):

                def begin(group: MicroBatchPlan) -> None:
                    buffers = free.popleft()
                    if buffers.copied is not None:
                        buffers.copied.synchronize()
                    waiting.append(
                        (
                            group,
                            buffers,
                            [
                                pool.submit(reader, slot, group.epoch, buffers.row(i))
                                for i, slot in enumerate(group.slots)
                            ],
                        )
                    )

                def end() -> EncodedBatch:
                    group, buffers, futures = waiting.popleft()
                    with watch.over(group):
                        return EncodedBatch(
                            buffers,
                            [future.result() for future in futures],
                            group,
                            self.dataset.depth_size.width,
                        )

                try:
                    for group in groups:
                        begin(group)
                        if len(waiting) == len(ring) - 1:
                            packed = end()
                            yield packed
                            packed.stale = True
                            free.append(packed.buffers)
                    while waiting:
                        packed = end()
                        yield packed
                        packed.stale = True
                finally:
                    for _, _, futures in waiting:
                        for future in futures:
                            future.cancel()
            rings.append(ring)  # not after an error: a thread may be at work in it

        return stage

    # ---- processes

    def _in_processes(
        self, reader: Reader, processes: int
    ) -> Callable[[Iterable[MicroBatchPlan]], Iterator[EncodedBatch]]:
        """The same by torch's DataLoader, whose workers are sent the groups."""

        def stage(groups: Generator[MicroBatchPlan]) -> Iterator[EncodedBatch]:
            loader = torch.utils.data.DataLoader(
                _InWorker(reader),
                batch_size=None,
                sampler=_Sampled(groups),
                num_workers=processes,
                prefetch_factor=2,
                pin_memory=self.pin,
                multiprocessing_context="spawn",  # fork copies locks that other threads hold
            )
            with closing(groups), self._watch(reader.split) as watch:
                batches = iter(loader)
                try:
                    while True:
                        with watch.over(None):
                            found = _next(batches)
                        if found is None:
                            return
                        if isinstance(found, str):
                            raise ValueError(found)
                        yield found
                finally:
                    del batches  # ends the processes, also where a traceback keeps this frame

        return stage

    # ---- damage

    def _accounted(self, split: str) -> Callable[[Iterable[EncodedBatch]], Iterator[EncodedBatch]]:
        """A stage that reports each damaged sample once, and stops where there are too many."""

        def stage(batches: Generator[EncodedBatch]) -> Iterator[EncodedBatch]:
            with closing(batches):
                for packed in batches:
                    for number, facts in itertools.chain.from_iterable(
                        loaded.damage for loaded in packed.loaded
                    ):
                        self._account(split, number, facts)
                    yield packed

        return stage

    def _account(self, split: str, number: int, facts: dict[str, Any]) -> None:
        known = self.damaged.setdefault(split, set())
        if number in known:
            return
        known.add(number)
        self.on_damage({"split": split, "sample": number, **facts})
        if len(known) > self.settings.max_damaged:
            raise ValueError(
                f"{facts['shard']}: {len(known)} damaged samples of {split}, --max-damaged is"
                f" {self.settings.max_damaged}; the last: {facts['key']}: {facts['reason']}"
            )


def _next(batches: Iterator[EncodedBatch | str]) -> EncodedBatch | str | None:
    """What the workers made next, or None at the end; a worker that is gone is one line."""
    try:
        return next(batches, None)
    except RuntimeError as err:
        if "DataLoader worker" not in str(err):
            raise
        return (
            f"a worker process was killed (out of memory?): {' '.join(str(err).split())[:200]}; run"
            " again with fewer --processes"
        )


class _InWorker(torch.utils.data.Dataset):
    """In a worker process: groups in, packed batches in shared memory out.

    What is wrong comes back as text.
    """

    def __init__(self, reader: Reader):
        self.reader = reader

    def __getitem__(self, group: MicroBatchPlan) -> EncodedBatch | str:
        torch.set_num_threads(1)
        try:
            return _packed(
                self.reader, group, Buffers(self.reader.dataset.arrays(len(group.slots)), pin=False)
            )
        except ValueError as err:
            return str(err)


class _Sampled(torch.utils.data.Sampler):
    def __init__(self, groups: Iterable[MicroBatchPlan]):
        self.groups = groups

    def __iter__(self) -> Iterator[MicroBatchPlan]:
        return iter(self.groups)


# ----------------------------------------------------------------------------------------- fetching


def _fetch_ahead(
    dataset: Dataset, split: str, in_hand: int
) -> Callable[[Iterable[MicroBatchPlan]], Iterator[MicroBatchPlan]]:
    """A stage that has the shards of the next samples fetched before it is their turn.

    Local data passes through.

    It looks AHEAD samples ahead. Where shards are shuffled, also no further than the cache must
    have room for: two blocks of them, with those of the `in_hand` groups that it handed on last.
    """

    def stage(groups: Iterable[MicroBatchPlan]) -> Iterator[MicroBatchPlan]:
        if not dataset.remote:
            yield from groups
            return
        coming: deque[tuple[MicroBatchPlan, dict]] = deque()
        reading: deque[dict] = deque(maxlen=in_hand)
        pool = ThreadPoolExecutor(2, thread_name_prefix="fetch")
        try:
            for group in groups:
                found = [dataset.find(split, slot.sample) for slot in group.slots]
                shards = {(index.place, ref.number): index for index, ref in found if index.cache}
                while coming and (
                    len(coming) * len(group.slots) >= AHEAD
                    or 0
                    < 2 * dataset.block
                    < len(set(shards).union(*reading, *(s for _, s in coming)))
                ):
                    reading.append(coming[0][1])
                    yield coming.popleft()[0]
                for place, number in set(shards).difference(*reading, *(s for _, s in coming)):
                    pool.submit(shards[place, number].shard_path, number)
                coming.append((group, shards))
            yield from (group for group, _ in coming)
        finally:
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # who waits for a download says so; here nobody would

    return stage
