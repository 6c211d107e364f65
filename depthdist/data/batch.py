"""Batches: encoded samples in buffers, and tensors on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdist.data.sample_order import MicroBatchPlan
from depthdist.shards.sample_arrays import Arrays


@dataclass
class Batch:
    """B samples on a device.

    rgb       (B, h, w, 3) uint8
    depth_mm  (B, H, W) float32, 0 where invalid
    mask      (B, H, W) bool
    weight    (B,) float32, 0 for a sample that only fills the batch
    samples   number of each in its split
    stems     of their captures
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
        """Return the batch on `device`."""
        return Batch(
            rgb=self.rgb.to(device),
            depth_mm=self.depth_mm.to(device),
            mask=self.mask.to(device),
            weight=self.weight.to(device),
            samples=self.samples,
            stems=self.stems,
            group=self.group,
        )


class ReadSample(NamedTuple):
    """The sample that was really read for a slot, and the damage that was found on the way.

    damage  number of each damaged sample, and `Damaged.facts` of it
    """

    sample: int
    weight: float
    stem: str
    step_mm: float
    damage: list[tuple[int, dict[str, Any]]]


class Buffers:
    """Memory for one encoded batch, page-locked for copies to a GPU if `pin` is true.

    copied  an event on the GPU, after which the buffers may be written again
    """

    def __init__(self, shapes: Arrays, pin: bool):
        self.rgb = torch.empty(shapes.rgb.shape, dtype=torch.uint8, pin_memory=pin)
        self.depth = torch.empty(shapes.depth.shape, dtype=torch.int16, pin_memory=pin)
        self.mask = torch.empty(shapes.mask.shape, dtype=torch.uint8, pin_memory=pin)
        self.copied: torch.cuda.Event | None = None

    def row(self, i: int) -> Arrays:
        """Return views of sample i's part."""
        return Arrays(
            self.rgb[i].numpy(), self.depth[i].numpy().view(np.uint16), self.mask[i].numpy()
        )


@dataclass
class EncodedBatch:
    """A batch as it is stored, valid until the next one is requested.

    buffers  (B, h, w, 3) uint8 RGB, (B, H, W) uint16 steps, (B, H, ceil(W / 8)) packed mask
    width    W
    stale    its buffers may hold another batch by now
    """

    buffers: Buffers
    loaded: list[ReadSample]
    group: MicroBatchPlan
    width: int
    stale: bool = False

    def pin_memory(self) -> EncodedBatch:
        """Move the buffers to page-locked memory; torch's DataLoader calls it."""
        for name in ("rgb", "depth", "mask"):
            setattr(self.buffers, name, getattr(self.buffers, name).pin_memory())
        return self

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`, in memory of its own."""
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
        # int16 holds the bits of a uint16, for which torch lacks many operations
        depth_mm = (steps.int() & 0xFFFF).float() * step_mm[:, None, None]
        bits = torch.arange(7, -1, -1, device=device, dtype=torch.uint8)
        mask = (packed.unsqueeze(-1) >> bits & 1).flatten(2)[:, :, : self.width].bool()  # (B, H, W)
        return Batch(
            rgb=rgb,
            depth_mm=depth_mm,
            mask=mask,
            weight=weight,
            samples=[loaded.sample for loaded in self.loaded],
            stems=[loaded.stem for loaded in self.loaded],
            group=self.group,
        )
