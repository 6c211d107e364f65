"""What the completion network sees of an image: maps at a working size, and guesses to mix.

    maps = working_maps(rgb, measured_mm, pred, bounds)     # about 300 x 486
    inputs = network_inputs(maps)

How far away what is behind a hole lies is decided by the whole image, and a hole spans hundreds of
pixels, so the network works at about a quarter of the camera's size. For each pixel it gets several
guesses and says how to mix them: the harmonic function of what was measured around, the prediction
moved to it harmonically, and what was measured next to the left, right, top and bottom: the depth
in a shadow is that on its far side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.geometry.measured import is_measured
from depthdist.geometry.resampling import upsample
from depthdist.models.detail import coarse_log
from depthdist.models.detail_network import LOG_DEPTH, LOG_FLOOR, LOG_IMAGE
from depthdist.models.harmonic_fill import fill_harmonic

WORKING_WIDTH = 486  # pixels, about
MAPS = 2  # a change of what maps hold counts it up
UNIT = 0.02  # of corrections and errors: natural logarithm of depth
NUM_GUESSES = 6
NUM_CHANNELS = 3 + 3 + 3 + 2 * 4
SPREAD = 0.1  # of log depth between guesses
MOST = 3.0  # of a channel
FAR_AWAY = 500.0  # pixels to the nearest measured one, where there is none


class WorkingMaps(NamedTuple):
    """An image at the working size.

    rgb       (h, w, 3) uint8
    depth_mm  (h, w) float32, measured, 0 where nothing was
    log_pred  (h, w) float32, natural logarithm of the predicted depth in mm
    """

    rgb: np.ndarray
    depth_mm: np.ndarray
    log_pred: np.ndarray


class NetworkInputs(NamedTuple):
    """What the network gets of an image.

    channels  (NUM_CHANNELS, h, w) float32
    guesses   (NUM_GUESSES, h, w) float32, natural logarithms of depth in mm
    """

    channels: np.ndarray
    guesses: np.ndarray


def working_stride(width: int) -> int:
    """Return how many of the image's pixels a side one of the working size is."""
    return max(1, round(width / WORKING_WIDTH))


def working_maps(
    rgb: np.ndarray, measured_mm: np.ndarray, pred: Tensor, bounds: DepthRange
) -> WorkingMaps:
    """Return an image at the working size; rows and columns that do not fill a stride are left out.

    rgb          (H, W, 3) uint8
    measured_mm  (H, W) mm, NaN or 0 where nothing was measured; of each square the measured pixel
                 nearest to its middle counts
    pred         (h', w') float32 normalized inverse depth of the whole image, at any size
    """
    full = rgb.shape[:2]
    stride = working_stride(full[1])
    size = max(1, full[0] // stride), max(1, full[1] // stride)
    used = tuple(slice(0, side * stride) for side in size)
    middle = tuple(slice(stride // 2, side * stride, stride) for side in size)
    depth_mm = _one_of_each_square(np.where(is_measured(measured_mm), measured_mm, 0)[used], stride)
    whole = coarse_log(upsample(pred[None].float(), full, "bilinear")[0], bounds).cpu().numpy()
    small = rgb[used]
    small = small if stride == 1 else resize_rgb(np.ascontiguousarray(small), size)
    return WorkingMaps(small, depth_mm, whole[middle])


def _one_of_each_square(depth_mm: np.ndarray, stride: int) -> np.ndarray:
    """Return the measured pixel nearest to the middle of each square, (h, w) float32, 0 for none.

    A mean would lie between the surfaces at a silhouette.
    """
    middle = stride // 2
    places = sorted(
        np.ndindex(stride, stride),
        key=lambda place: ((place[0] - middle) ** 2 + (place[1] - middle) ** 2, place),
    )
    rows, columns = places[0]
    chosen = depth_mm[rows::stride, columns::stride].astype(np.float32)
    for rows, columns in places[1:]:
        other = depth_mm[rows::stride, columns::stride]
        chosen = np.where(chosen > 0, chosen, other)
    return np.ascontiguousarray(chosen, np.float32)


def network_inputs(maps: WorkingMaps) -> NetworkInputs:
    """Return what the network gets; without any measured pixel all guesses are the prediction."""
    measured = maps.depth_mm > 0
    pred = maps.log_pred.astype(np.float64)
    if measured.any():
        known = np.log(np.where(measured, maps.depth_mm, 1.0))
        around = fill_harmonic(known, measured)
        moved = pred + fill_harmonic(known - pred, measured)
        away = ndimage.distance_transform_edt(~measured)
    else:
        known = around = moved = pred
        away = np.full(pred.shape, FAR_AWAY)
    mean, spread = LOG_IMAGE
    light = (np.log(maps.rgb / 255.0 + LOG_FLOOR) - mean) / spread
    depth_mean, depth_spread = LOG_DEPTH
    guesses = [around, moved]
    channels = [
        *light.transpose(2, 0, 1),
        (around - depth_mean) / depth_spread,
        (pred - around) / SPREAD,
        (moved - around) / SPREAD,
        measured,
        np.minimum(away / 8, MOST),
        np.log1p(away) / 3,
    ]
    for value, steps in next_measured(known, measured):
        guess = np.where(steps >= 0, value, around)
        guesses.append(guess)
        channels.append(np.clip((guess - around) / SPREAD, -MOST, MOST))
        channels.append(np.where(steps < 0, MOST, np.log1p(np.maximum(steps, 0)) / 2))
    return NetworkInputs(np.stack(channels, dtype=np.float32), np.stack(guesses, dtype=np.float32))


def next_measured(values: np.ndarray, measured: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for left, right, top and bottom what is measured next on that side, and how far away.

    values, measured  (H, W)
    returns           4 x (values (H, W), pixels (H, W) int, 0 where the pixel itself is measured
                      and -1 where that side has none)
    """
    found = []
    for turned in (False, True):
        for backwards in (False, True):
            v, m = (array.T if turned else array for array in (values, measured))
            v, m = (array[:, ::-1] if backwards else array for array in (v, m))
            columns = np.arange(m.shape[1])
            last = np.maximum.accumulate(np.where(m, columns, -1), axis=1)
            value = np.take_along_axis(v, np.maximum(last, 0), axis=1)
            steps = np.where(last >= 0, columns - last, -1)
            pair = [array[:, ::-1] if backwards else array for array in (value, steps)]
            value, steps = (array.T if turned else array for array in pair)
            found.append((value, steps))
    return found


def to_full_size(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map (h, w) of the working size at the image's, (H, W) float32, bilinear.

    Rows and columns that were left out repeat the last one.
    """
    stride = working_stride(size[1])
    scaled = (small.shape[0] * stride, small.shape[1] * stride)
    large = upsample(torch.from_numpy(small)[None].float(), scaled, "bilinear")[0].numpy()
    rest = [(0, max(0, side - done)) for side, done in zip(size, scaled)]
    full: np.ndarray = np.pad(large, rest, mode="edge")[: size[0], : size[1]]
    return full
