"""Crops of training images for the detail stage: which comes when is arithmetic on a seed.

    plan = CropPlan(num_images=46, batch=8, seed=0)
    for draw in plan.step(17): ...          # 8 CropDraws: image, and where and how it is cut
    top, left = place(draw, cells, size=(1200, 1944), side=256)

Crop k of a training depends on (seed, k) alone; step s has the crops s * batch .. (s + 1) * batch.
Images come in one shuffle after another. Three crops in four lie on relief, the rest anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from depthdist.data.random_streams import crop_stream, shuffle_stream

CELL = 32  # pixels a side of the squares in which relief is looked for
RELIEF_SHARE = 0.75  # of the crops
RELIEF_MM = (1.5, 15.0)  # second differences of depth over STRIDE pixels that are relief
STRIDE = 5
LEAST_RELIEF = 0.15  # share of a square's pixels
EXPOSURE = 0.5  # stops up or down
CAST = 0.03  # standard deviation of each channel's gain
GAMMA = 2.2
ALIGNED = 4  # crops begin at multiples of so many pixels: the network's first scale


class CropDraw(NamedTuple):
    """One crop, before the image's relief is known.

    image         number of the training sample
    on_relief     whether it lies on relief, if the image has any
    cell          which of the image's squares with relief, 0..1
    row, column   where in the square or the image, 0..1 each
    flip_rows, flip_columns  whether it is turned upside down, mirrored
    gains         of red, green and blue, of linear light
    """

    image: int
    on_relief: bool
    cell: float
    row: float
    column: float
    flip_rows: bool
    flip_columns: bool
    gains: np.ndarray


@dataclass(frozen=True)
class CropPlan:
    """Which crops a step has; see the module's docstring."""

    num_images: int
    batch: int
    seed: int

    def step(self, step: int) -> list[CropDraw]:
        """Return the crops of an optimizer step, counted from 0."""
        first = step * self.batch
        return [self._draw(number) for number in range(first, first + self.batch)]

    def _draw(self, number: int) -> CropDraw:
        turn, place = divmod(number, self.num_images)
        image = shuffle_stream(self.seed, 0, turn).permutation(self.num_images)[place]
        relief, cell, row, column, rows, columns, stops, *cast = crop_stream(
            self.seed, number
        ).random(10)
        gains = draw_gains(np.array([stops, *cast]))
        return CropDraw(
            int(image), relief < RELIEF_SHARE, cell, row, column, rows < 0.5, columns < 0.5, gains
        )


def draw_gains(uniform: np.ndarray) -> np.ndarray:
    """Return gains (3,) of linear light, from four numbers in 0..1: exposure, and a cast."""
    stops, *cast = uniform
    gains: np.ndarray = 2.0 ** (EXPOSURE * (2 * stops - 1)) * np.exp(CAST * _normal(np.array(cast)))
    return gains


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Return numbers in 0..1 as deviations of variance 1 (of a logistic distribution)."""
    inside = np.clip(uniform, 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside)) * (np.sqrt(3.0) / np.pi)


def find_relief(depth_mm: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the squares (N, 2) int16, rows and columns in CELLs, of an image that show relief.

    depth_mm, mask  (H, W) measured depth and where it counts
    """
    found = np.zeros(mask.shape, bool)
    low, high = RELIEF_MM
    for axis in (0, 1):
        if mask.shape[axis] <= 2 * STRIDE:
            continue
        z, m, hit = (np.moveaxis(array, axis, 0) for array in (depth_mm, mask, found))
        bend = np.abs(z[: -2 * STRIDE] - 2 * z[STRIDE:-STRIDE] + z[2 * STRIDE :])
        measured = m[: -2 * STRIDE] & m[STRIDE:-STRIDE] & m[2 * STRIDE :]
        hit[STRIDE:-STRIDE] |= measured & (bend > low) & (bend < high)
    rows, columns = (side // CELL for side in mask.shape)
    squares = found[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    return np.argwhere(squares.mean((1, 3)) > LEAST_RELIEF).astype(np.int16)


def place(draw: CropDraw, cells: np.ndarray, size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return row and column of a crop's first pixel, multiples of ALIGNED.

    cells  (N, 2) of `find_relief`;  size  height and width of the image, at least `side`
    """
    if draw.on_relief and len(cells):
        square = cells[int(draw.cell * len(cells))]
        corner = square * CELL + np.array([draw.row, draw.column]) * CELL - side / 2
    else:
        corner = np.array([draw.row, draw.column]) * (np.array(size) - side)
    top, left = np.clip(corner, 0, np.array(size) - side).astype(int) // ALIGNED * ALIGNED
    return int(top), int(left)


def expose(rgb: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return an image (h, w, 3) uint8 whose linear light is multiplied by `gains` (3,)."""
    levels = np.arange(256)[:, None] * gains ** (1 / GAMMA)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)  # (256, 3)
    return table[rgb, np.arange(3)]
