"""Read one sample into buffers; a damaged one is an error or is replaced, as the settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from depthdist.data.augmentation import (
    Augmentation,
    AugmentSettings,
    draw_augmentation,
    mirror,
)
from depthdist.data.batch import Buffers, EncodedBatch, ReadSample
from depthdist.data.dataset import Dataset
from depthdist.data.photometric import apply_photometric
from depthdist.data.sample_order import BatchSlot, MicroBatchPlan
from depthdist.shards.decoding import read_sample
from depthdist.shards.index import Damaged, Index, SampleRef
from depthdist.shards.sample_arrays import Arrays

T = TypeVar("T")


@dataclass(frozen=True)
class SampleReader:
    """Reads one slot of a split into arrays. It can be pickled for worker processes.

    damaged  "stop" or "quarantine", as in ReadSettings
    known    damaged samples, which are not read again
    """

    dataset: Dataset
    split: str
    damaged: str = "stop"
    augment: AugmentSettings | None = None
    seed: int = 0
    known: set[int] = field(default_factory=set)

    def __call__(self, slot: BatchSlot, epoch: int, out: Arrays) -> ReadSample:
        """Read the slot's sample, or the first of its replacements that is not damaged."""
        damage: list[tuple[int, dict[str, Any]]] = []
        for number in (slot.sample, *slot.stand_ins):
            if number in self.known:
                continue
            index, ref = self.dataset.find(self.split, number)
            try:
                read_shard(index, ref, partial(read_sample, ref=ref, index=index, out=out))
            except Damaged as err:
                if self.damaged == "stop":
                    raise ValueError(damage_advice(err, index)) from err
                damage.append((number, err.facts))
                self.known.add(number)
                continue
            if self.augment is not None and self.augment.any:
                _augment(draw_augmentation(self.augment, self.seed, epoch, number), out)
            return ReadSample(number, slot.weight, ref.stem, index.step_mm, damage)
        if slot.stand_ins:
            raise ValueError(
                f"{self.dataset.place}: sample {slot.sample} of {self.split} and the"
                f" {len(slot.stand_ins)} after it are all damaged"
            )
        for array in out:
            array.fill(0)
        index, ref = self.dataset.find(self.split, slot.sample)
        return ReadSample(slot.sample, 0.0, ref.stem, index.step_mm, damage)


def read_batch(reader: SampleReader, group: MicroBatchPlan, buffers: Buffers) -> EncodedBatch:
    """Read a group in this thread."""
    loaded = [reader(slot, group.epoch, buffers.row(i)) for i, slot in enumerate(group.slots)]
    return EncodedBatch(buffers, loaded, group, reader.dataset.depth_size.width)


def damage_advice(err: Damaged, index: Index) -> str:
    """Return the error line of a damaged sample: what it is, and what can be done."""
    verify = ""
    if not index.cache:
        verify = (
            f"`depthdist shard --verify {index.place}` lists all damage, --verify-first does so"
            " before training, "
        )
    return f"{err}; {verify}--damaged quarantine goes on without it"


def read_shard(index: Index, ref: SampleRef, read: Callable[[int], T]) -> T:
    """Return what `read` returns of a sample's tar, given its file descriptor; raise Damaged.

    A cached shard that is damaged or was evicted is fetched again.
    """
    for attempt in range(3):
        path = index.shard_path(ref.number)
        try:
            with open(path, "rb", buffering=0) as file:
                return read(file.fileno())
        except Damaged:
            if index.cache is None or attempt:
                raise
            path.unlink(missing_ok=True)  # the copy may be at fault: fetch it again
        except FileNotFoundError as err:  # the cache may have evicted it
            if index.cache is None or attempt == 2:
                raise _unreadable(ref, 0, "the file is missing") from err
        except OSError as err:
            raise _unreadable(ref, ref.start, f"cannot be read: {err.strerror}") from err
    raise AssertionError("the last attempt returns or raises")


def _unreadable(ref: SampleRef, offset: int, reason: str) -> Damaged:
    return Damaged(ref.shard, ref.key, ref.stem, "shard", offset, reason)


def _augment(drawn: Augmentation, out: Arrays) -> None:
    if drawn.flip:
        for array, mirrored in zip(out, mirror(*out)):
            array[:] = mirrored
    out.rgb[:] = apply_photometric(out.rgb, drawn)
