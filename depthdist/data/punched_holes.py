"""Holes to learn filling on: measured pixels are hidden where a camera could have missed them.

    hole = punch_holes(depth_mm, rgb, other_masks, hole_stream(seed, number))     # (H, W) bool

A structured-light camera misses what its projector does not reach, what is dark or glossy, and what
lies outside the projector's field. Each draw combines some of:

    shifted  the holes of another capture, turned and moved
    shadow   what a projector beside the camera does not reach behind nearer pixels; its baseline is
             drawn, on either side
    dark     the darkest pixels of a rectangle
    blobs    ellipses
    frame    all outside a rounded rectangle, as the rim of the projector's field

`disturb` spoils a prediction with smooth errors, over the whole image and in the holes alone. The
first kind shows beside the holes, too. The second does not: nothing is measured in the camera's own
holes, so no adapter was ever taught there, and it errs more than in holes that are punched.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from depthdist.geometry.resampling import upsample

LEAST_KNOWN = 0.1  # share of all pixels that stay measured
LEAST_HOLE = 0.01  # share of all pixels that are hidden
TRIES = 10
SHADOW = (50.0, 400.0)  # baseline x focal length / image width, mm
SLACK = 1.0  # pixels by which a shadow begins later: noise throws none
MOVE = 0.13  # of the width: the largest move of another capture's holes
KINDS_OF_HOLES = ("shifted", "blobs", "shadow", "dark", "frame")
CHANCE = (0.5, 0.35, 0.8, 0.3, 0.35)  # of each kind to be part of a draw
DISTURBED = (0.5, 0.4)  # share of the samples: everywhere, in holes
DISTURBANCE = ((0.01, 0.2), (0.03, 0.5))  # of log depth
OtherMask = Callable[[float], np.ndarray]  # number 0..1 of a capture -> measured (H, W) bool


def punch_holes(
    depth_mm: np.ndarray, rgb: np.ndarray, other_mask: OtherMask, random: np.random.Generator
) -> np.ndarray:
    """Return what (H, W) bool is hidden, measured or not; all False where no draw fits.

    depth_mm    (H, W) float32, 0 where nothing was measured
    rgb         (H, W, 3) uint8
    other_mask  returns where another capture was measured, at the same size
    """
    measured = depth_mm > 0
    for _ in range(TRIES):
        hole = _draw(depth_mm, measured, rgb, other_mask, random)
        hidden = (hole & measured).mean()
        if hidden >= LEAST_HOLE and measured.mean() - hidden >= LEAST_KNOWN:
            return hole
    return np.zeros_like(measured)


def _draw(
    depth_mm: np.ndarray,
    measured: np.ndarray,
    rgb: np.ndarray,
    other_mask: OtherMask,
    random: np.random.Generator,
) -> np.ndarray:
    hole = np.zeros_like(measured)
    chosen = random.random(len(CHANCE)) < CHANCE
    if not chosen.any():
        chosen[KINDS_OF_HOLES.index("shadow")] = True
    for kind in np.array(KINDS_OF_HOLES)[chosen]:
        if kind == "shifted":
            hole |= shifted(~other_mask(random.random()), random)
        elif kind == "blobs":
            hole |= blobs(measured.shape, random)
        elif kind == "shadow":
            hole |= _shadows(depth_mm, random)
        elif kind == "dark":
            hole |= dark(rgb, random)
        else:
            hole |= frame(measured.shape, random)
    return hole


def shifted(hole: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the holes of another capture (H, W), turned and moved; what leaves comes in again."""
    if random.random() < 0.5:
        hole = hole[::-1]
    if random.random() < 0.5:
        hole = hole[:, ::-1]
    most = round(MOVE * hole.shape[1])
    moves = [int(random.integers(-most, most + 1)) for _ in range(2)]
    return np.roll(hole, moves, (0, 1))


def blobs(size: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return some ellipses, their axes from 0.6 to 10 % of the width."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    hole = np.zeros(size, bool)
    for _ in range(random.integers(1, 8)):
        row, column = random.random(2) * size
        a, b = width * np.exp(random.uniform(np.log(0.006), np.log(0.1), 2))
        turn = random.uniform(0, np.pi)
        across = (columns - column) * np.cos(turn) + (rows - row) * np.sin(turn)
        along = (rows - row) * np.cos(turn) - (columns - column) * np.sin(turn)
        hole |= (across / a) ** 2 + (along / b) ** 2 < 1
    return hole


def _shadows(depth_mm: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the shadows of a projector beside the camera, sometimes of one above it as well."""
    low, high = np.log(SHADOW)
    width = depth_mm.shape[1]
    baselines = width * np.exp(random.uniform(low, high, 2)) * random.choice([-1, 1], 2)
    hole = shadow(depth_mm, baselines[0])
    if random.random() < 0.3:
        hole = hole | shadow(depth_mm.T, baselines[1]).T
    return hole


def shadow(depth_mm: np.ndarray, baseline: float) -> np.ndarray:
    """Return the pixels (H, W) that nearer ones in their row hide from a projector.

    depth_mm  (H, W), 0 where nothing was measured: that throws no shadow and gets none
    baseline  between projector and camera, mm, times the focal length in pixels; its sign is the
              projector's side
    """
    if baseline < 0:
        return shadow(depth_mm[:, ::-1], -baseline)[:, ::-1]
    measured = depth_mm > 0
    seen_at = np.arange(depth_mm.shape[1]) + baseline / np.where(measured, depth_mm, 1.0)
    # a pixel is lit when no pixel to its left is seen further right by the projector
    left = np.maximum.accumulate(np.where(measured, seen_at, -np.inf), axis=1)
    hidden: np.ndarray = measured & (left > seen_at + SLACK)
    return hidden


def dark(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the darkest 5 to 35 % of the image as far as they lie in a rectangle."""
    light = rgb.mean(axis=2)
    threshold = np.percentile(light, random.uniform(5, 35))
    hole = np.zeros(light.shape, bool)
    (top, bottom), (left, right) = (
        sorted(random.integers(0, side + 1, 2).tolist()) for side in light.shape
    )
    hole[top:bottom, left:right] = light[top:bottom, left:right] < threshold
    return hole


def frame(size: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return all outside a rounded rectangle whose sides are up to a quarter within the image's."""
    height, width = size
    edges = random.uniform(0, 0.25, 4) * random.random(4) * [height, height, width, width]
    top, left = edges[0], edges[2]
    bottom, right = height - edges[1], width - edges[3]
    rows = (2 * np.arange(height) - top - bottom) / (bottom - top)
    columns = (2 * np.arange(width) - left - right) / (right - left)
    roundness = random.uniform(2, 8)
    outside: np.ndarray = np.abs(rows)[:, None] ** roundness + np.abs(columns) ** roundness > 1
    return outside


def disturb(log_pred: np.ndarray, measured: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a prediction (H, W) float32 with smooth errors, some growing inwards from the rims.

    log_pred  (H, W) float32, logarithm of depth
    measured  (H, W) bool, what is left of it
    """
    everywhere, in_holes = random.random(2) < DISTURBED
    if everywhere:
        log_pred = log_pred + _smooth_error(log_pred.shape, DISTURBANCE[0], random)
    if in_holes and measured.any():
        away = ndimage.distance_transform_edt(~measured)
        grown = np.minimum(away / random.uniform(2, 15), 1)
        log_pred = log_pred + grown * _smooth_error(log_pred.shape, DISTURBANCE[1], random)
    disturbed: np.ndarray = log_pred.astype(np.float32)
    return disturbed


def _smooth_error(
    size: tuple[int, ...], limits: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    """Return a smooth field (H, W) whose standard deviation lies between two limits."""
    rows = int(random.integers(2, 7))
    coarse = random.normal(size=(rows, round(1.6 * rows))) + 0.5 * random.normal()
    field = upsample(torch.from_numpy(coarse)[None], (size[0], size[1]))[0].numpy()
    low, high = np.log(limits)
    scaled: np.ndarray = np.exp(random.uniform(low, high)) * field
    return scaled
