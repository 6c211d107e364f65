"""Summarize one capture for a data report: its depth, holes, exposure, and signs of faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from depthdist.captures.edge_agreement import EdgeScores, describe_capture, edge_scores
from depthdist.captures.flying_pixels import find_flying
from depthdist.captures.near_duplicates import fingerprint
from depthdist.geometry.measured import is_measured
from depthdist.reports.drawings import colorize, depth_colormap

BIN_MM = 10.0  # width of a bin of the depth histogram
NUM_BINS = 1000  # up to 10 m; the last bin has everything beyond
VALID_MAP_SIZE = (30, 48)  # rows, columns
THUMBNAIL_WIDTH = 240  # pixels
# Grey levels from which on a pixel is saturated, or black.
BRIGHT_GREY = 250
DARK_GREY = 5


@dataclass(frozen=True)
class CaptureSummary:
    """What is known of one capture.

    split            "" for raw captures
    size             height, width of the depth map
    valid_share      of the pixels; the shares of bright and dark ones are of the image's pixels
    flying_share     of the valid pixels, as plateau_share
    plateau_mm       the most frequent depth (rounded to 0.01 mm), that plateau_share of them have
    residual_px      how far X and Y are from a pinhole camera at most; NaN where it is unknown
    remarks          what else looks wrong, a line each: frames, units, mirrored images
    edges            how well edges of image and depth agree, None where nothing is known
    histogram        (NUM_BINS,) valid pixels by depth
    valid_map        VALID_MAP_SIZE float64, share of valid pixels
    fingerprint      one FINGERPRINT
    rgb_thumbnail, depth_thumbnail  (h, w, 3) uint8
    """

    name: str
    split: str
    session: int
    size: tuple[int, int]
    valid_share: float
    near_mm: float
    far_mm: float
    mean_mm: float
    std_mm: float
    mean_grey: float
    bright_share: float
    dark_share: float
    flying_share: float
    plateau_share: float
    plateau_mm: float
    num_grooves: int
    residual_px: float
    remarks: tuple[str, ...]
    edges: EdgeScores | None
    histogram: np.ndarray
    valid_map: np.ndarray
    fingerprint: np.ndarray
    rgb_thumbnail: np.ndarray
    depth_thumbnail: np.ndarray

    @property
    def num_valid(self) -> float:
        """Return the number of valid pixels."""
        return self.valid_share * self.size[0] * self.size[1]


def summarize_capture(
    *,
    name: str,
    split: str,
    session: int,
    rgb: np.ndarray,
    depth_mm: np.ndarray,
    num_grooves: int,
    intrinsics: dict[str, Any] | None,
    remarks: Sequence[str] = (),
) -> CaptureSummary:
    """Return the summary of a capture that has at least one valid pixel.

    rgb         (h, w, 3) uint8
    depth_mm    (H, W) float32; NaN, inf or 0 where nothing was measured
    intrinsics  of the pinhole camera fitted to X and Y, if known
    remarks     what is known to look wrong
    """
    with np.errstate(invalid="ignore"):
        valid = is_measured(depth_mm)
    known = depth_mm[valid].astype(np.float64)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    edges = edge_scores(Image.fromarray(rgb), depth_mm)
    mismatch = describe_capture(edges)
    values, counts = np.unique(np.round(known, 2), return_counts=True)
    most = int(np.argmax(counts))
    bins = np.minimum((known / BIN_MM).astype(int), NUM_BINS - 1)
    height, width = depth_mm.shape
    return CaptureSummary(
        name=name,
        split=split,
        session=session,
        size=(height, width),
        valid_share=float(valid.mean()),
        near_mm=float(known.min()),
        far_mm=float(known.max()),
        mean_mm=float(known.mean()),
        std_mm=float(known.std()),
        mean_grey=float(grey.mean()),
        bright_share=float((grey >= BRIGHT_GREY).mean()),
        dark_share=float((grey <= DARK_GREY).mean()),
        flying_share=int(find_flying(depth_mm).sum()) / known.size,
        plateau_share=float(counts[most] / known.size),
        plateau_mm=float(values[most]),
        num_grooves=num_grooves,
        residual_px=float(intrinsics["max_residual_px"]) if intrinsics else math.nan,
        remarks=(*remarks, *([mismatch] if mismatch else [])),
        edges=edges,
        histogram=np.bincount(bins, minlength=NUM_BINS),
        valid_map=_shrink_mask(valid),
        fingerprint=fingerprint(rgb),
        rgb_thumbnail=_rgb_thumbnail(rgb),
        depth_thumbnail=_depth_thumbnail(depth_mm, valid),
    )


def _shrink_mask(valid: np.ndarray) -> np.ndarray:
    """Return the share of valid pixels in each cell of VALID_MAP_SIZE, float64."""
    height, width = VALID_MAP_SIZE
    image = Image.fromarray((valid * 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)).astype(np.float64) / 255


def _rgb_thumbnail(rgb: np.ndarray) -> np.ndarray:
    height = round(THUMBNAIL_WIDTH * rgb.shape[0] / rgb.shape[1])
    image = Image.fromarray(rgb).resize((THUMBNAIL_WIDTH, height), Image.Resampling.BOX)
    return np.asarray(image)


def _depth_thumbnail(depth_mm: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return depth colored over its own 1st to 99th percentile, grey where it is invalid."""
    stride = max(1, depth_mm.shape[1] // THUMBNAIL_WIDTH)
    low, high = np.percentile(depth_mm[valid], (1, 99))
    part = np.where(valid, depth_mm, np.nan)[::stride, ::stride]
    return colorize(part, low, max(high, low + 1.0), depth_colormap())
