"""Load batches: webdataset carries the samples through, threads or processes decode them.

    dataset = open_dataset(DataSettings(data=("data/tires",)))
    loader = Loader(dataset, settings)
    for encoded in loader.train(plan, seed=0, rank=0, start=Position(), epochs=15):
        batch = encoded.to(device)  # millimetres are made there; uint8 and uint16 are copied
    # every sample exactly once
    for encoded in loader.evaluate("val", micro_batch=1, rank=0, world=2): ...

Which sample comes when is arithmetic (sample_order.py); the index says where its bytes are. An
encoded batch is only valid until the next one is requested: its buffers are used again. Damage
stops everything, or is set aside, counted and reported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
import webdataset as wds

from depthdist.core.environment import SHM, free_shared_memory, local_rank
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.batch import Buffers, EncodedBatch
from depthdist.data.dataset import Dataset, ReadSettings
from depthdist.data.decode_processes import DecodeProcesses
from depthdist.data.decode_threads import DecodeThreads
from depthdist.data.prefetch import fetch_ahead
from depthdist.data.sample_order import (
    START,
    BatchSlot,
    MicroBatchPlan,
    Position,
    TrainPlan,
    eval_groups,
    train_groups,
)
from depthdist.data.sample_reader import SampleReader, read_batch

DEFAULTS = ReadSettings()


def print_damage(facts: dict[str, Any]) -> None:
    """Print a warning that names a damaged sample."""
    print(f"WARNING      damaged: {facts}", file=sys.stderr)


class Loader:
    """Batches of a dataset, for training and evaluation.

    device     where batches go: decides whether the buffers are page-locked
    on_damage  is called once for each damaged sample: {split, sample, shard, key, stem, member,
               offset, reason}
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: ReadSettings = DEFAULTS,
        augment: AugmentSettings | None = None,
        device: torch.device | str = "cpu",
        on_damage: Callable[[dict[str, Any]], Any] = print_damage,
    ):
        self.dataset = dataset
        self.settings = settings
        self.augment = augment
        self.on_damage = on_damage
        self.pin = torch.device(device).type == "cuda"
        self.damaged: dict[str, set[int]] = {}  # by split
        # rings of buffers that no iterator uses, by micro-batch
        self._rings: dict[int, list[list[Buffers]]] = {}

    def train(
        self,
        plan: TrainPlan,
        seed: int,
        rank: int,
        start: Position = START,
        epochs: int | None = None,
    ) -> Iterable[EncodedBatch]:
        """Return a rank's micro-batches from `start` to the end of that many epochs, or for ever.

        They are read ahead across the ends of epochs.
        """
        order = self.dataset.order(seed)
        return self._pipeline(
            lambda: train_groups(order, plan, rank, start, epochs),
            self._reader("train", self.augment, seed),
            plan.micro_batch,
            self.settings.processes,
        )

    def evaluate(
        self,
        split: str,
        micro_batch: int,
        rank: int,
        world: int,
        samples: Sequence[int] | None = None,
    ) -> Iterable[EncodedBatch]:
        """Return a rank's batches of a split, unshuffled.

        Over all ranks every sample has weight 1 exactly once (0 where it is damaged).

        samples  numbers in the split of those to read; by default all
        """
        chosen = range(self.dataset.count(split)) if samples is None else samples
        return self._pipeline(
            lambda: eval_groups(chosen, micro_batch, rank, world), self._reader(split), micro_batch
        )

    def samples(self, split: str, numbers: Iterable[int], seed: int | None = None) -> EncodedBatch:
        """Return those samples of a split as one batch, in that order.

        seed  augment them as that seed's first epoch does; None: as they are stored
        """
        group = MicroBatchPlan([BatchSlot(number, 1.0) for number in numbers])
        buffers = Buffers(self.dataset.arrays(len(group.slots)), self.pin)
        augment = None if seed is None else self.augment
        return read_batch(self._reader(split, augment, seed or 0), group, buffers)

    def memory_bytes(self, micro_batch: int) -> int:
        """Return the most memory that batches take, in training with an evaluation meanwhile.

        Each thread or process also holds an image that it is decoding.
        """
        sample_bytes = sum(array.nbytes for array in self.dataset.arrays())
        num_samples = 0
        for processes in (self.settings.processes, 0):
            num_samples += self._num_batches(micro_batch, processes) * micro_batch
            num_samples += processes or self.settings.num_threads
        return num_samples * sample_bytes

    def _num_batches(self, micro_batch: int, processes: int = 0) -> int:
        """Return how many batches are in memory at most.

        Threads: one that the user of the batches holds, one ready, and those being decoded.
        Processes: two each, one on its way from there, and one that the user holds.
        """
        if processes:
            return 3 * processes + 2
        return 2 + -(-2 * self.settings.num_threads // micro_batch)

    def _reader(
        self, split: str, augment: AugmentSettings | None = None, seed: int = 0
    ) -> SampleReader:
        known = self.damaged.setdefault(split, set()).copy()
        return SampleReader(self.dataset, split, self.settings.damaged, augment, seed, known)

    def _pipeline(
        self,
        groups: Callable[[], Iterator[MicroBatchPlan]],
        reader: SampleReader,
        micro_batch: int,
        processes: int = 0,
    ) -> Iterable[EncodedBatch]:
        if processes and not self._fits_shared_memory(micro_batch):
            processes = 0
        num_batches = self._num_batches(micro_batch, processes)
        decode: DecodeThreads | DecodeProcesses
        if processes:
            decode = DecodeProcesses(reader, processes, self.settings.stall, self.pin)
        else:
            decode = DecodeThreads(
                reader,
                self.settings.num_threads,
                self.settings.stall,
                rings=self._rings.setdefault(micro_batch, []),
                new_ring=lambda: self._new_ring(micro_batch, num_batches),
            )
        return wds.DataPipeline(
            groups,
            fetch_ahead(self.dataset, reader.split, num_batches),
            decode,
            self._report_damage(reader.split),
        )

    def _fits_shared_memory(self, micro_batch: int) -> bool:
        """Return whether processes can send their batches here; print a warning if not."""
        processes = self.settings.processes
        sample_bytes = sum(array.nbytes for array in self.dataset.arrays())
        wanted = self._num_batches(micro_batch, processes) * micro_batch * sample_bytes
        free = free_shared_memory()
        if wanted < free:
            return True
        if local_rank() == 0:
            print(
                f"WARNING      --processes {processes} takes {wanted / 2**20:.0f} MiB of {SHM} a"
                f" rank, {free / 2**20:.0f} MiB are free (docker: --shm-size): samples are decoded"
                " in threads instead",
                file=sys.stderr,
            )
        return False

    def _new_ring(self, micro_batch: int, num_batches: int) -> list[Buffers]:
        return [Buffers(self.dataset.arrays(micro_batch), self.pin) for _ in range(num_batches)]

    def _report_damage(
        self, split: str
    ) -> Callable[[Generator[EncodedBatch, None, None]], Iterator[EncodedBatch]]:
        """Return a stage that reports each damaged sample once, and stops if there are too many."""

        def stage(batches: Generator[EncodedBatch, None, None]) -> Iterator[EncodedBatch]:
            with closing(batches):
                for encoded in batches:
                    for loaded in encoded.loaded:
                        for number, facts in loaded.damage:
                            self._count_damage(split, number, facts)
                    yield encoded

        return stage

    def _count_damage(self, split: str, number: int, facts: dict[str, Any]) -> None:
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
