"""Batches: encoded samples in buffers, and tensors on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdist.data.augmentation import (
    AugmentSettings,
    draw_augmentation,
    mirror,
)
from depthdist.data.dataset import Dataset
from depthdist.data.photometric import apply_photometric
from depthdist.data.sample_order import BatchSlot, MicroBatchPlan
from depthdist.shards.decoding import read_sample
from depthdist.shards.index import Damaged
from depthdist.shards.sample_arrays import Arrays


@dataclass
class Batch:
    """B samples on a device.

    rgb       (B, h, w, 3) uint8
    depth_mm  (B, H, W) float32, 0 where invalid
    mask      (B, H, W) bool
    weight    (B,) float32, 0 for a sample that only fills the batch
    samples   number of each in its split;  stems  of their captures
    group     where it stands in the epoch
    """

    rgb: Tensor
    depth_mm: Tensor
    mask: Tensor
    weight: Tensor
    samples: list[int]
    stems: list[str]
    group: MicroBatchPlan

    def to(self, device: torch.device) -> Batch:
        tensors = (t.to(device) for t in (self.rgb, self.depth_mm, self.mask, self.weight))
        return Batch(*tensors, self.samples, self.stems, self.group)


class Buffers:
    """Room for one batch as it is stored, in memory that a GPU can fetch from where `pin` is true.

    `copied`, where set, is the moment on the GPU from which on it may be written again.
    """

    def __init__(self, shapes: Arrays, pin: bool):
        self.rgb, self.depth, self.mask = (
            torch.empty(a.shape, dtype=kind, pin_memory=pin)
            for a, kind in zip(shapes, (torch.uint8, torch.int16, torch.uint8))
        )
        self.copied: torch.cuda.Event | None = None

    def row(self, i: int) -> Arrays:
        return Arrays(
            self.rgb[i].numpy(), self.depth[i].numpy().view(np.uint16), self.mask[i].numpy()
        )


@dataclass
class EncodedBatch:
    """A batch as it is stored: (B, h, w, 3) uint8, (B, H, W) uint16 steps, (B, H, ceil(W / 8))
    packed mask. Valid until the next.
    """

    buffers: Buffers
    loaded: list[ReadSample]
    group: MicroBatchPlan
    width: int
    stale: bool = False

    def pin_memory(self) -> EncodedBatch:
        """The same in memory that a GPU can fetch from; torch's DataLoader calls it."""
        for name in ("rgb", "depth", "mask"):
            setattr(self.buffers, name, getattr(self.buffers, name).pin_memory())
        return self

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, in memory of its own."""
        assert not self.stale, "a packed batch is valid until the next one is asked for"
        device = torch.device(device)
        step_mm = torch.tensor([loaded.step_mm for loaded in self.loaded], dtype=torch.float32)
        weight = torch.tensor([loaded.weight for loaded in self.loaded])
        rgb, steps, packed, step_mm, weight = (
            t.to(device, non_blocking=True)
            for t in (self.buffers.rgb, self.buffers.depth, self.buffers.mask, step_mm, weight)
        )
        if device.type == "cuda":
            self.buffers.copied = torch.cuda.Event()
            self.buffers.copied.record()
        elif device.type == "cpu":
            rgb = rgb.clone()
        depth_mm = (steps.int() & 0xFFFF).float() * step_mm[
            :, None, None
        ]  # int16 holds what uint16 does, without its gaps in torch
        bits = torch.arange(7, -1, -1, device=device, dtype=torch.uint8)
        mask = (packed.unsqueeze(-1) >> bits & 1).flatten(2)[:, :, : self.width].bool()  # (B, H, W)
        return Batch(
            rgb,
            depth_mm,
            mask,
            weight,
            [s.sample for s in self.loaded],
            [s.stem for s in self.loaded],
            self.group,
        )


class ReadSample(NamedTuple):
    """What became of a slot: the sample that was really read, and the damage that was met on the
    way.
    """

    sample: int
    weight: float
    stem: str
    step_mm: float
    damage: list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Reader:
    """Reads one slot of a split into arrays. It goes to worker processes as it is."""

    dataset: Dataset
    split: str
    damaged: str = "stop"
    augment: AugmentSettings | None = None
    seed: int = 0
    known: set[int] = field(default_factory=set)  # damaged samples, not to be read again

    def __call__(self, slot: BatchSlot, epoch: int, out: Arrays) -> ReadSample:
        damage: list[tuple[int, dict[str, Any]]] = []
        for number in (slot.sample, *slot.stand_ins):
            if number in self.known:
                continue
            index, ref = self.dataset.find(self.split, number)
            try:
                self._read(index, ref, out)
            except Damaged as err:
                if self.damaged == "stop":
                    listed = (
                        ""
                        if index.cache
                        else f"`tools/shard.py --verify {index.place}` lists all damage, "
                    )
                    raise ValueError(
                        f"{err}; {listed}--damaged quarantine goes on without it"
                    ) from err
                damage.append((number, err.facts))
                self.known.add(number)
                continue
            if self.augment is not None and self.augment.any:
                self._augment(epoch, number, out)
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

    def _read(self, index, ref, out: Arrays) -> None:
        for attempt in range(3):
            path = index.shard_path(ref.number)
            try:
                with open(path, "rb", buffering=0) as file:
                    return read_sample(file.fileno(), ref, index, out)
            except Damaged:
                if index.cache is None or attempt:
                    raise
                path.unlink(missing_ok=True)  # the copy may be at fault: fetch it again
            except FileNotFoundError as err:  # a cache may have had to make room
                if index.cache is None or attempt == 2:
                    raise Damaged(
                        ref.shard, ref.key, ref.stem, "shard", 0, "the file is missing"
                    ) from err
            except OSError as err:
                raise Damaged(
                    ref.shard,
                    ref.key,
                    ref.stem,
                    "shard",
                    ref.start,
                    f"cannot be read: {err.strerror}",
                ) from err

    def _augment(self, epoch: int, number: int, out: Arrays) -> None:
        drawn = draw_augmentation(self.augment, self.seed, epoch, number)
        if drawn.flip:
            for array, image in zip(out, mirror(*out)):
                array[:] = image
        out.rgb[:] = apply_photometric(out.rgb, drawn)


def _packed(reader: Reader, group: MicroBatchPlan, buffers: Buffers) -> EncodedBatch:
    """The group, read here and now."""
    loaded = [reader(slot, group.epoch, buffers.row(i)) for i, slot in enumerate(group.slots)]
    return EncodedBatch(buffers, loaded, group, reader.dataset.depth_size.width)
