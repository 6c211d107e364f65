"""What a stage was trained on, in a few numbers, and how far an image is from it.

seen = measure_images(maps)                       # of the training images
remarks(seen, rgb, measured_mm)                   # {"exposure": "brightness 9 (mean ...)"}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from depthdist.geometry.measured import is_measured
from depthdist.models.completion_maps import WorkingMaps

SLACK = 0.15  # of the limits' distance, by which an image may lie outside
OUTSIDE = 0.2  # share of an image's measured pixels outside the depths of training
EXTREME = (1.0, 99.0)  # percentiles of a training image's depth


@dataclass(frozen=True)
class SeenRange:
    """What the training images were like, lowest and highest.

    brightness  mean level of an image, 0..255
    depth_mm    measured depth, without the extreme hundredths of each image
    """

    brightness: tuple[float, float]
    depth_mm: tuple[float, float]


def measure_images(images: Iterable[WorkingMaps]) -> SeenRange:
    """Return the range of some images, of which at least one has a measured pixel."""
    brightness = []
    depths = []
    for maps in images:
        brightness.append(float(maps.rgb.mean()))
        measured = maps.depth_mm[maps.depth_mm > 0]
        if len(measured):
            depths.append(np.percentile(measured, EXTREME))
    low, high = np.min(depths, axis=0)[0], np.max(depths, axis=0)[1]
    return SeenRange((min(brightness), max(brightness)), (float(low), float(high)))


def remarks(seen: SeenRange, rgb: np.ndarray, measured_mm: np.ndarray | None) -> dict[str, str]:
    """Return by kind how an image differs from those of training; {} where it does not.

    rgb          (H, W, 3) uint8
    measured_mm  (H, W) mm, NaN or 0 where nothing was measured; None without any
    """
    found = {}
    brightness = float(rgb[::4, ::4].mean())
    low, high = widened(seen.brightness)
    if not low <= brightness <= high:
        first, last = seen.brightness
        found["exposure"] = (
            f"brightness {brightness:.0f} (mean level of 255): the training images had {first:.0f}"
            f" .. {last:.0f}"
        )
    if measured_mm is not None:
        depths = measured_mm[::4, ::4]
        depths = depths[is_measured(depths)]
        low, high = widened(seen.depth_mm)
        share = float(np.mean((depths < low) | (depths > high))) if len(depths) else 0.0
        if share > OUTSIDE:
            first, last = seen.depth_mm
            found["depth"] = (
                f"other depth: {share:.0%} of what was measured lies outside the {first:.0f} .."
                f" {last:.0f} mm of the training images"
            )
    return found


def widened(limits: tuple[float, float]) -> tuple[float, float]:
    """Return limits that are SLACK of their distance further apart at either end."""
    low, high = limits
    slack = SLACK * (high - low)
    return low - slack, high + slack
