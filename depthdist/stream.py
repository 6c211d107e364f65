"""Shards become batches: which sample comes when is arithmetic on the index; webdataset carries the samples through.

Order is a pure function of (seed, epoch). Neither ranks, threads nor shards enter it: the global batch is the same at every
world size, and each rank takes its part of it. Every rank has the same number of micro-batches, always full: what is short
at an epoch's end is filled with slots of weight 0.

    plan = TrainPlan(num_samples=46, global_batch=8, micro_batch=1, world=2)
    for batch in train_epoch(index, plan, seed=0, epoch=0, rank=0): ...
    for batch in eval_batches(index, "val", micro_batch=1, rank=0, world=2): ...     # every sample exactly once
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from depthdist.config import Size
from depthdist.shards import Index, SampleRef, decode_sample, read_index


@dataclass(frozen=True)
class DataSettings:
    """Data"""

    data: Path = Path("data/tires")
    "Folder of shards that tools/shard.py wrote."
    size: Size | None = None
    "Height x width that the network sees, pixels. Default: as sharded (the recipe's is 756x1260)."
    threads: int = 2
    "Threads a rank that read and decode samples ahead."

    def problems(self) -> list[str]:
        found = [] if self.threads >= 1 else [f"--threads is {self.threads}: expected >= 1"]
        try:
            index = read_index(self.data)
        except ValueError as err:
            raw = self.data.parent / f"{self.data.name}_raw"
            made = "" if self.data.exists() else f"; to make some: `python tools/make_tires.py {raw}`, then `python tools/shard.py {raw} {self.data}`"
            return [*found, f"--data {err}{made}"]
        if self.size not in (None, index.size):
            found.append(f"--size is {self.size}, the pictures in {self.data} are {index.size}: leave it out, or shard again with --size {self.size}")
        if not index.stats.get("train") or not index.samples("train"):
            found.append(f"--data {self.data}: there is no training sample")
        return found


class Slot(NamedTuple):
    """One place in a batch: the sample's number in its split, and 1, or 0 where it only fills the batch."""

    sample: int
    weight: float


@dataclass(frozen=True)
class TrainPlan:
    """How an epoch is cut: global batches, ranks, micro-batches. ValueError when the numbers do not divide."""

    num_samples: int
    global_batch: int
    micro_batch: int
    world: int

    def __post_init__(self):
        together = self.micro_batch * self.world
        if self.num_samples < 1:
            raise ValueError("there is no training sample")
        if self.global_batch % together:
            worlds = [w for w in range(1, self.global_batch + 1) if self.global_batch % (w * self.micro_batch) == 0]
            low = self.global_batch // together * together
            raise ValueError(
                f"train_batch_size {self.global_batch} cannot be cut into {self.world} ranks x micro-batches of {self.micro_batch}: "
                f"{', '.join(map(str, worlds)) or 'no number of'} ranks would do, or train_batch_size "
                f"{f'{low} or ' if low else ''}{low + together}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank does for one optimizer step."""
        return self.global_batch // (self.micro_batch * self.world)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last one may hold fewer real samples."""
        return -(-self.num_samples // self.global_batch)

    def num_real(self, step_in_epoch: int) -> int:
        """Real samples in that global batch, over all ranks."""
        return min(self.global_batch, self.num_samples - step_in_epoch * self.global_batch)

    def slots(self, order: np.ndarray, rank: int) -> Iterator[Slot]:
        """This rank's slots of one epoch, in the order it works on them."""
        share = self.global_batch // self.world
        for step in range(self.steps_per_epoch):
            for i in range(step * self.global_batch + rank * share, step * self.global_batch + (rank + 1) * share):
                yield Slot(int(order[i]), 1.0) if i < self.num_samples else Slot(int(order[-1]), 0.0)


@dataclass
class Batch:
    """B samples as they are stored; `to` moves them and makes millimetres.

    rgb       (B, h, w, 3) uint8
    depth_mm  (B, H, W) float32, 0 where invalid
    mask      (B, H, W) bool
    weight    (B,) float32, 0 for a sample that only fills the batch
    samples   number of each in its split;  keys  names for people
    """

    rgb: Tensor
    depth_mm: Tensor
    mask: Tensor
    weight: Tensor
    samples: list[int]
    keys: list[str]

    def to(self, device: torch.device) -> Batch:
        tensors = (t.to(device, non_blocking=True) for t in (self.rgb, self.depth_mm, self.mask, self.weight))
        return Batch(*tensors, self.samples, self.keys)


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """(N,) the order of the epoch's samples, the same on every rank."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_samples)


def train_epoch(index: Index, plan: TrainPlan, seed: int, epoch: int, rank: int, threads: int = 2) -> Iterable[Batch]:
    """The micro-batches of one epoch for one rank: steps_per_epoch x accumulation of them."""
    order = epoch_order(seed, epoch, plan.num_samples)
    return _pipeline(index, "train", lambda: plan.slots(order, rank), plan.micro_batch, threads)


def eval_batches(index: Index, split: str, micro_batch: int, rank: int, world: int, threads: int = 2) -> Iterable[Batch]:
    """The split's batches for one rank, unshuffled: over all ranks every sample has weight 1 exactly once."""
    num = len(index.samples(split))
    steps = -(-num // (world * micro_batch))

    def slots() -> Iterator[Slot]:
        for place in range(steps * micro_batch):
            i = (place // micro_batch * world + rank) * micro_batch + place % micro_batch
            yield Slot(i, 1.0) if i < num else Slot(num - 1, 0.0)

    return _pipeline(index, split, slots, micro_batch, threads)


def load_samples(index: Index, split: str, numbers: Iterable[int]) -> Batch:
    """Those samples of a split as one batch, in that order."""
    numbers = list(numbers)
    return next(iter(_pipeline(index, split, lambda: (Slot(i, 1.0) for i in numbers), len(numbers), 1)))


def _pipeline(index: Index, split: str, slots: Callable[[], Iterator[Slot]], micro_batch: int, threads: int) -> wds.DataPipeline:
    refs = index.samples(split)
    ahead = threads + 2 * micro_batch
    return wds.DataPipeline(slots, _threaded(lambda slot: _load(index, refs[slot.sample], slot), threads, ahead), _batched(micro_batch))


def _load(index: Index, ref: SampleRef, slot: Slot) -> dict:
    """One sample, every member's bytes proven against the index first."""
    try:
        with open(ref.shard, "rb") as file:
            members = {name: _member(file.fileno(), name, *place) for name, place in ref.members.items()}
        sample = decode_sample(members, index)
    except (OSError, ValueError) as err:
        raise ValueError(f"{ref.shard}: sample {ref.key} ({ref.stem}): {err}; `tools/shard.py --verify {index.folder}` lists all damage") from err
    depth_mm = sample["depth"].astype(np.float32) * np.float32(index.step_mm)
    return {"rgb": sample["rgb"], "depth_mm": depth_mm, "mask": sample["mask"], "slot": slot, "key": ref.stem}


def _member(fd: int, name: str, offset: int, size: int, crc: int) -> bytes:
    content = os.pread(fd, size, offset)
    if len(content) != size:
        raise ValueError(f"member {name} at byte {offset}: {len(content)} bytes, expected {size}")
    if zlib.crc32(content) != crc:
        raise ValueError(f"member {name} at byte {offset}: CRC-32 is {zlib.crc32(content):08x}, expected {crc:08x}")
    return content


def _threaded(function: Callable, threads: int, ahead: int) -> Callable[[Iterable], Iterator]:
    """A stage that runs `function` in threads, at most `ahead` items early, and keeps the order."""

    def stage(items: Iterable) -> Iterator:
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            waiting: deque = deque()
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    return stage


def _batched(micro_batch: int) -> Callable[[Iterable[dict]], Iterator[Batch]]:
    def stage(samples: Iterable[dict]) -> Iterator[Batch]:
        group: list[dict] = []
        for sample in samples:
            group.append(sample)
            if len(group) == micro_batch:
                stacked = {name: torch.from_numpy(np.stack([s[name] for s in group])) for name in ("rgb", "depth_mm", "mask")}
                slots = [s["slot"] for s in group]
                weight = torch.tensor([s.weight for s in slots])
                yield Batch(**stacked, weight=weight, samples=[s.sample for s in slots], keys=[s["key"] for s in group])
                group = []
        assert not group, "plans give whole batches"

    return stage
