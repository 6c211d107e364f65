"""Decode batches ahead in processes: torch's DataLoader, whose workers are sent the groups."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing

import torch
from torch.utils import data

from depthdist.core.environment import no_signals_to_children, obey_parent_only
from depthdist.core.errors import one_line
from depthdist.data.batch import Buffers, EncodedBatch
from depthdist.data.sample_order import MicroBatchPlan
from depthdist.data.sample_reader import SampleReader, read_batch
from depthdist.data.slow_reader import SlowReaderWarning


class DecodeProcesses:
    """A pipeline stage: groups in, encoded batches out, in the same order."""

    def __init__(self, reader: SampleReader, num_processes: int, stall_s: float, pin: bool):
        self.reader = reader
        self.num_processes = num_processes
        self.stall_s = stall_s
        self.pin = pin

    def __call__(self, groups: Generator[MicroBatchPlan, None, None]) -> Iterator[EncodedBatch]:
        """Yield each group's batch."""
        loader = data.DataLoader(
            _BatchesInWorker(self.reader),
            batch_size=None,
            sampler=_GroupSampler(groups),
            num_workers=self.num_processes,
            prefetch_factor=2,
            pin_memory=self.pin,
            multiprocessing_context="spawn",  # fork copies locks that other threads hold
            worker_init_fn=obey_parent_only,
        )
        with (
            closing(groups),
            SlowReaderWarning(self.reader.dataset, self.reader.split, self.stall_s) as watch,
        ):
            with no_signals_to_children():
                batches = iter(loader)  # starts them
            try:
                while True:
                    with watch.waiting_for(None):
                        found = _next(batches)
                    if found is None:
                        return
                    if isinstance(found, str):
                        raise ValueError(found)
                    yield found
            finally:
                del batches  # ends the processes, also where a traceback keeps this frame


def _next(batches: Iterator[EncodedBatch | str]) -> EncodedBatch | str | None:
    """Return the workers' next batch, None at the end, or one line that says what went wrong."""
    try:
        return next(batches, None)
    except RuntimeError as err:
        if "DataLoader worker" not in str(err):
            raise
        return (
            f"a worker process was killed (out of memory?): {one_line(err, 200)}; run"
            " again with fewer --processes"
        )


class _BatchesInWorker(data.Dataset[EncodedBatch | str]):
    """In a worker process: a group in, its batch in shared memory out, or the error as text."""

    def __init__(self, reader: SampleReader):
        self.reader = reader

    def __getitem__(self, group: MicroBatchPlan) -> EncodedBatch | str:
        torch.set_num_threads(1)
        arrays = self.reader.dataset.arrays(len(group.slots))
        try:
            return read_batch(self.reader, group, Buffers(arrays, pin=False))
        except ValueError as err:
            return str(err)


class _GroupSampler(data.Sampler[MicroBatchPlan]):
    """Sends the groups to the workers."""

    def __init__(self, groups: Iterable[MicroBatchPlan]):
        self.groups = groups

    def __iter__(self) -> Iterator[MicroBatchPlan]:
        return iter(self.groups)
