"""One image of relief: where a capture has most grooves, what is there and what is drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from depthdist.evaluation.relief.captures import CaptureTruth

WINDOW = (0.4, 0.3)  # share of the image's height and width that is shown
BLUR = 41 / 1944  # side of the square whose mean is subtracted, as a share of the width
RANGE_MM = 8.0  # from black to white: -8 to +8 mm
BRIGHTEST = 99  # percentile of the shown part that becomes white: rubber is dark
CAPTION_PX = 28
LEAST_PX = 400  # a panel's width, below which its pixels are enlarged
Array = np.ndarray


def draw_relief(rgb: Array, truth: CaptureTruth, preds_mm: Mapping[str, Array]) -> Image.Image:
    """Return image | true relief | relief of each prediction, side by side.

    rgb       (H, W, 3) uint8;  preds_mm  (H, W) mm by label
    """
    maps = {"exact depth": truth.exact_mm, **preds_mm}
    return _side_by_side(relief_panels(rgb, truth.groove > 0, maps))


def relief_panels(rgb: Array, wanted: Array, maps_mm: Mapping[str, Array]) -> dict[str, Array]:
    """Return image and relief of each map, (h, w, 3) uint8 by caption, where most is wanted.

    Relief is depth less its blurred self: grooves are bright.

    rgb      (H, W, 3) uint8
    wanted   (H, W) bool, such as the pixels of grooves
    maps_mm  (H, W) by label, mm, NaN where nothing is known
    """
    part = find_window(wanted)
    top = np.percentile(rgb[part], BRIGHTEST)
    light = np.clip(rgb[part] * (255 / max(float(top), 1.0)), 0, 255).astype(np.uint8)
    panels = {"image, brightened": light}
    for label, z_mm in maps_mm.items():
        relief = relief_of(np.asarray(z_mm, np.float64))[part]
        grey = np.clip((relief / RANGE_MM + 1) * 127.5, 0, 255).astype(np.uint8)
        panels[f"{label}: relief, {-RANGE_MM:g} .. +{RANGE_MM:g} mm"] = np.dstack([grey] * 3)
    return panels


def find_window(wanted: Array) -> tuple[slice, slice]:
    """Return rows and columns of the part of a map (H, W) bool with the most wanted pixels."""
    size = tuple(max(1, round(share * n)) for share, n in zip(WINDOW, wanted.shape))
    share = ndimage.uniform_filter(wanted.astype(np.float32), size, mode="constant")
    middle = np.unravel_index(int(np.argmax(share)), wanted.shape)
    starts = [
        int(np.clip(c - side // 2, 0, n - side)) for c, side, n in zip(middle, size, wanted.shape)
    ]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, size))
    return rows, columns


def relief_of(z_mm: Array) -> Array:
    """Return depth (H, W) less its mean over a square around each pixel, mm; 0 where it is NaN."""
    side = max(3, 2 * round(BLUR * z_mm.shape[1] / 2) + 1)
    known = np.isfinite(z_mm)
    filled = np.where(known, z_mm, 0.0)
    weight = ndimage.uniform_filter(known.astype(np.float64), side, mode="constant")
    blurred = ndimage.uniform_filter(filled, side, mode="constant") / np.maximum(weight, 1e-9)
    return np.where(known, filled - blurred, 0.0)


def _side_by_side(panels: Mapping[str, Array]) -> Image.Image:
    """Return panels (h, w, 3) uint8 of one size with their captions above."""
    height, width = next(iter(panels.values())).shape[:2]
    scale = max(1, -(-LEAST_PX // width))
    font = ImageFont.load_default(CAPTION_PX // 2)
    whole = Image.new("RGB", (scale * width * len(panels), scale * height + CAPTION_PX), "white")
    pen = ImageDraw.Draw(whole)
    for i, (caption, panel) in enumerate(panels.items()):
        left = i * scale * width
        shown = Image.fromarray(panel).resize(
            (scale * width, scale * height), Image.Resampling.NEAREST
        )
        whole.paste(shown, (left, CAPTION_PX))
        pen.text((left + 6, CAPTION_PX // 4), caption, "black", font)
    return whole
