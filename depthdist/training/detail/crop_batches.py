"""Batches of crops: what the detail network sees, and what the camera measured there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depthdist.data.crops import CropDraw, CropPlan, expose, place
from depthdist.data.full_size import FullSizeReader
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.resampling import upsample_crop
from depthdist.models.detail import coarse_log
from depthdist.training.detail.coarse import CoarseFiles
from depthdist.training.stage_batches import StageBatch, read_ahead


@dataclass
class CropBatch(StageBatch):
    """B crops of S x S pixels.

    rgb         (B, S, S, 3) uint8
    coarse_log  (B, S, S) float32, natural logarithm of the coarse depth in mm
    depth_mm    (B, S, S) float32, measured, 0 where nothing was
    mask        (B, S, S) bool
    """

    rgb: Tensor
    coarse_log: Tensor
    depth_mm: Tensor
    mask: Tensor


@dataclass(frozen=True)
class CropReader:
    """Cuts crops out of a dataset's images, depth and coarse predictions."""

    reader: FullSizeReader
    coarse: CoarseFiles
    bounds: DepthRange
    side: int

    def __call__(self, split: str, draws: Sequence[CropDraw]) -> CropBatch:
        """Return the drawn crops of a split as one batch."""
        crops = [self._cut(split, draw) for draw in draws]
        return CropBatch(*(torch.stack(tensors) for tensors in zip(*crops)))

    def _cut(self, split: str, draw: CropDraw) -> tuple[Tensor, ...]:
        size, side = self.reader.dataset.depth_size, self.side
        target, cells = self.coarse.read(split, draw.image)
        top, left = place(draw, cells, size, side)
        rgb, depth_mm, mask = self.reader.crop(split, draw.image, top, left, side, side)
        coarse = upsample_crop(torch.from_numpy(target), size, (top, left), (side, side))
        maps = [
            torch.from_numpy(expose(rgb, draw.gains)),
            coarse_log(coarse, self.bounds),
            torch.from_numpy(depth_mm),
            torch.from_numpy(mask),
        ]
        axes = [axis for axis, flip in enumerate((draw.flip_rows, draw.flip_columns)) if flip]
        return tuple(one.flip(axes) for one in maps)


def training_crops(
    crops: CropReader, plan: CropPlan, rank: int, world: int, step: int
) -> Iterator[CropBatch]:
    """Yield this rank's crops of each step from `step` on, for ever; one step is read ahead."""
    share = plan.batch // world

    def read(step: int) -> CropBatch:
        return crops("train", plan.step(step)[rank * share : (rank + 1) * share])

    return read_ahead(read, step)


def fixed_draws(num_images: int, count: int, seed: int) -> list[CropDraw]:
    """Return `count` crops as they are looked at: on relief, not turned, as they were exposed."""
    plan = CropPlan(num_images, count, seed)
    ones = np.ones(3)
    return [
        draw._replace(on_relief=True, flip_rows=False, flip_columns=False, gains=ones)
        for draw in plan.step(0)
    ]
