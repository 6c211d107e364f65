"""Batches of images with punched holes: what the completion network sees, and what was hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdist.data.crops import draw_gains, expose
from depthdist.data.punched_holes import disturb, punch_holes
from depthdist.data.random_streams import hole_stream, shuffle_stream
from depthdist.models.completion_maps import WorkingMaps, network_inputs
from depthdist.training.completion.working_images import WorkingImages
from depthdist.training.stage_batches import StageBatch, read_ahead

NOTHING_SHOWN = 0.15  # of the training samples: the prediction alone, for its sigma


class Draw(NamedTuple):
    """One sample: its image, and the stream of all that is drawn for it."""

    image: int
    number: int
    validation: bool = False


@dataclass
class HoleBatch(StageBatch):
    """B images of h x w pixels.

    channels, guesses  as models/completion_maps.py has them
    log_pred           (B, h, w) float32, natural logarithm of the adapter's depth in mm
    depth_mm           (B, h, w) float32, measured, 0 where nothing was
    hole               (B, h, w) bool, measured pixels that the network was not shown
    """

    channels: Tensor
    guesses: Tensor
    log_pred: Tensor
    depth_mm: Tensor
    hole: Tensor


@dataclass(frozen=True)
class HolePlan:
    """Which samples a step has: sample k depends on (seed, k) alone; images come in shuffles."""

    num_images: int
    batch: int
    seed: int

    def step(self, step: int) -> list[Draw]:
        """Return the samples of an optimizer step, counted from 0."""
        first = step * self.batch
        return [self._draw(number) for number in range(first, first + self.batch)]

    def _draw(self, number: int) -> Draw:
        turn, place = divmod(number, self.num_images)
        order = shuffle_stream(self.seed, 1, turn).permutation(self.num_images)
        return Draw(int(order[place]), number)


@dataclass(frozen=True)
class HoleReader:
    """Punches holes into a run's images.

    num_masks  training images, whose own holes are moved onto others
    """

    images: WorkingImages
    num_masks: int
    seed: int

    def __call__(self, split: str, draws: Sequence[Draw]) -> HoleBatch:
        """Return the drawn samples of a split as one batch."""
        samples = [self._sample(split, draw) for draw in draws]
        return HoleBatch(*(torch.stack(tensors) for tensors in zip(*samples)))

    def maps(self, split: str, draw: Draw) -> tuple[WorkingMaps, np.ndarray]:
        """Return an image as it is shown, without what is hidden, and its depth (h, w) mm."""
        random = hole_stream(self.seed, draw.number, draw.validation)
        maps = self.images.read(split, draw.image)
        depth_mm, measured = maps.depth_mm, maps.depth_mm > 0
        if draw.validation:
            hole = measured if draw.number % 4 == 3 else self._punch(maps, random)
            shown = np.where(hole, 0.0, depth_mm).astype(np.float32)
            return maps._replace(depth_mm=shown), depth_mm
        hole = measured if random.random() < NOTHING_SHOWN else self._punch(maps, random)
        rgb = expose(maps.rgb, draw_gains(random.random(4)))
        log_pred = disturb(maps.log_pred, measured & ~hole, random)
        shown = np.where(hole, 0.0, depth_mm).astype(np.float32)
        axes = tuple(axis for axis in (0, 1) if random.random() < 0.5)
        arrays = (np.flip(array, axes) for array in (rgb, shown, log_pred, depth_mm))
        *seen, depth_mm = (np.ascontiguousarray(array) for array in arrays)
        return WorkingMaps(*seen), depth_mm

    def _punch(self, maps: WorkingMaps, random: np.random.Generator) -> np.ndarray:
        def other_mask(place: float) -> np.ndarray:
            return self.images.measured("train", int(place * self.num_masks))

        return punch_holes(maps.depth_mm, maps.rgb, other_mask, random)

    def _sample(self, split: str, draw: Draw) -> tuple[Tensor, ...]:
        maps, depth_mm = self.maps(split, draw)
        hole = (depth_mm > 0) & (maps.depth_mm == 0)
        arrays = (*network_inputs(maps), maps.log_pred, depth_mm, hole)
        return tuple(torch.from_numpy(array) for array in arrays)


def training_samples(
    reader: HoleReader, plan: HolePlan, rank: int, world: int, step: int
) -> Iterator[HoleBatch]:
    """Yield this rank's samples of each step from `step` on, for ever; one step is read ahead."""
    share = plan.batch // world

    def read(step: int) -> HoleBatch:
        return reader("train", plan.step(step)[rank * share : (rank + 1) * share])

    return read_ahead(read, step)


def validation_draws(num_images: int, count: int) -> list[Draw]:
    """Return `count` samples as they are looked at; of every fourth nothing at all is shown."""
    return [Draw(number % num_images, number, validation=True) for number in range(count)]
