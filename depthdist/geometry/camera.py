"""Pinhole cameras: intrinsics, the ray of every pixel, and the points that depth along rays gives.

    meta = {"size": (1200, 1944), "intrinsics": fit_intrinsics(xyz)}
    rays = pixel_rays(meta, (756, 1260))  # (756, 1260, 2): X / Z and Y / Z
    xyz = points_from_depth(depth_mm, rays)

The center of pixel (0, 0) is (0.5, 0.5). Arrays are NumPy, float64, mm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from depthdist.geometry.line_fit import fit_line

MAX_RESIDUAL_PX = 2.0  # up to which a fitted pinhole replaces the camera's own rays
MAX_NUMBER = 1e300  # beyond it products are no numbers any more
INTRINSICS_KEYS = {"fx", "fy", "cx", "cy", "pixel_centre", "max_residual_px"}
Array = np.ndarray[Any, Any]


def fit_intrinsics(xyz: Array, max_points: int = 20000) -> dict[str, Any] | None:
    """Return the pinhole that a point map was made with, None without two measured columns or rows.

    xyz      (H, W, 3) mm, NaN or Z <= 0 where nothing was measured
    returns  fx, fy, cx, cy in pixels; `max_residual_px`, the largest error over the points used:
             large where the map is not a pinhole's

    Least squares of column + 0.5 = fx X / Z + cx, and likewise for rows, over a grid of points.
    """
    stride = max(1, math.isqrt(xyz.shape[0] * xyz.shape[1] // max_points))
    grid = xyz[::stride, ::stride].astype(np.float64)
    with np.errstate(invalid="ignore"):
        rows, columns = np.nonzero((grid[:, :, 2] > 0) & np.isfinite(grid).all(axis=2))
    points = grid[rows, columns]  # (N, 3)
    found: dict[str, Any] = {}
    max_residual = 0.0
    axes = ((0, columns * stride + 0.5, "fx", "cx"), (1, rows * stride + 0.5, "fy", "cy"))
    for axis, pixel, focal, center in axes:
        ratio = points[:, axis] / points[:, 2]
        if len(points) < 2 or np.ptp(ratio) < 1e-6 or np.ptp(pixel) < 1:
            return None
        slope, offset = map(float, fit_line(ratio, pixel))
        residual = float(np.abs(slope * ratio + offset - pixel).max())
        max_residual = max(max_residual, residual)
        found |= {focal: round(slope, 4), center: round(offset, 4)}
    return {**found, "max_residual_px": round(max_residual, 4), "pixel_centre": 0.5}


def pinhole(size: tuple[int, int], fx: float, fy: float, cx: float, cy: float) -> dict[str, Any]:
    """Return a sample's `meta` for `pixel_rays`, from intrinsics in pixels of an image of `size`.

    Column + 0.5 = fx X / Z + cx.
    """
    intrinsics = {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    return {
        "size": list(size),
        "intrinsics": {**intrinsics, "max_residual_px": 0.0, "pixel_centre": 0.5},
    }


def pinhole_from_fov(size: tuple[int, int], degrees: float) -> dict[str, Any]:
    """Return a sample's `meta` for a camera that sees `degrees` from left to right.

    Its pixels are square and its axis passes through the middle of the image.
    """
    height, width = size
    focal = width / 2 / math.tan(math.radians(degrees) / 2)
    return pinhole(size, focal, focal, width / 2, height / 2)


def pixel_rays(meta: dict[str, Any], size: tuple[int, int]) -> Array | None:
    """Return (H, W, 2) X / Z and Y / Z of a map of `size`.

    None where the camera is unknown, or is no pinhole to within MAX_RESIDUAL_PX.

    meta  a sample's meta.json: `size` (height, width) of the capture, and its `intrinsics`
    """
    k = known_intrinsics(meta)
    capture_size: Any = meta.get("size")
    if k is None or k["max_residual_px"] > MAX_RESIDUAL_PX or not _are_numbers(capture_size, 2):
        return None
    rays = np.empty((*size, 2))
    height, width = capture_size
    center = k["pixel_centre"]
    columns = (np.arange(size[1]) + center) * width / size[1]
    rows = (np.arange(size[0]) + center) * height / size[0]
    rays[..., 0] = ((columns - k["cx"]) / k["fx"])[None, :]
    rays[..., 1] = ((rows - k["cy"]) / k["fy"])[:, None]
    return rays


def known_intrinsics(meta: dict[str, Any]) -> dict[str, Any] | None:
    """Return the `intrinsics` of a sample's meta.json, None where they are none of ours.

    External shards may hold anything of that name.
    """
    k = meta.get("intrinsics")
    if not isinstance(k, dict):
        return None
    values = list(map(k.get, sorted(INTRINSICS_KEYS)))
    return k if _are_numbers(values, len(values)) and k["fx"] and k["fy"] else None


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        and all(isinstance(value, (int, float)) and abs(value) < MAX_NUMBER for value in values)
    )


def points_from_depth(depth_mm: Array, rays: Array) -> Array:
    """Return (..., 3) X, Y, Z in mm of depth (...) along `rays` (..., 2)."""
    return np.concatenate([rays * depth_mm[..., None], depth_mm[..., None]], axis=-1)


def measured_rays(xyz: Array) -> Array | None:
    """Return (H, W, 2) X / Z and Y / Z of a point map (H, W, 3) mm.

    Its own where it was measured, elsewhere those of the pinhole that fits it. None where no
    pinhole fits to within MAX_RESIDUAL_PX.
    """
    size = xyz.shape[:2]
    rays = pixel_rays({"size": size, "intrinsics": fit_intrinsics(xyz)}, size)
    if rays is None:
        return None
    with np.errstate(invalid="ignore"):
        measured = np.isfinite(xyz).all(axis=2) & (xyz[..., 2] > 0)
    rays[measured] = xyz[measured][:, :2] / xyz[measured][:, 2:].astype(np.float64)
    return rays
