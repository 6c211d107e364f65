"""The camera: a pinhole's intrinsics, the ray of every pixel, and the points in space that depth
along the rays gives.

    # (756, 1260, 2) X / Z and Y / Z
    rays = pixel_rays({"size": (1200, 1944), "intrinsics": fit_intrinsics(xyz)}, (756, 1260))
    xyz = points(depth_mm, rays)

Pixel (0, 0) has its centre at (0.5, 0.5). Arrays are NumPy, float64, mm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FLAT_PX = 2.0  # residual up to which a fitted pinhole stands for the camera's own rays
Array = np.ndarray


def fit_intrinsics(xyz: np.ndarray, max_points: int = 20000) -> dict[str, Any] | None:
    """The pinhole that the point map was made with, from least squares of column + 0.5 = fx X / Z +
    cx, and the same in y.

    xyz (H, W, 3) mm. Pixel (0, 0) has its centre at (0.5, 0.5). `max_residual_px` is the largest
    error over the points used; large, where the map is no pinhole's. None where fewer than two
    columns or rows are measured.
    """
    stride = max(1, math.isqrt(xyz.shape[0] * xyz.shape[1] // max_points))
    some = xyz[::stride, ::stride].astype(np.float64)  # a grid over the whole picture
    with np.errstate(invalid="ignore"):
        rows, columns = np.nonzero((some[:, :, 2] > 0) & np.isfinite(some).all(axis=2))
    points, rows, columns = (
        some[rows, columns],
        rows * stride,
        columns * stride,
    )  # (N, 3), (N,), (N,)
    found: dict[str, Any] = {}
    residual = 0.0
    for axis, pixel, focal, centre in ((0, columns + 0.5, "fx", "cx"), (1, rows + 0.5, "fy", "cy")):
        ratio = points[:, axis] / points[:, 2]
        if len(points) < 2 or np.ptp(ratio) < 1e-6 or np.ptp(pixel) < 1:
            return None
        spread = ((ratio - ratio.mean()) ** 2).sum()
        slope = float(((ratio - ratio.mean()) * (pixel - pixel.mean())).sum() / spread)
        offset = float(pixel.mean() - slope * ratio.mean())
        residual = max(residual, float(np.abs(slope * ratio + offset - pixel).max()))
        found |= {focal: round(slope, 4), centre: round(offset, 4)}
    return {**found, "max_residual_px": round(residual, 4), "pixel_centre": 0.5}


def pinhole(size: tuple[int, int], fx: float, fy: float, cx: float, cy: float) -> dict[str, Any]:
    """A sample's `meta` for `pixel_rays`, of intrinsics in pixels of a picture of `size`.

    Column + 0.5 = fx X / Z + cx.
    """
    return {
        "size": list(size),
        "intrinsics": {
            "fx": fx,
            "fy": fy,
            "cx": cx,
            "cy": cy,
            "max_residual_px": 0.0,
            "pixel_centre": 0.5,
        },
    }


def pinhole_from_fov(size: tuple[int, int], degrees: float) -> dict[str, Any]:
    """The same of a camera that sees `degrees` from left to right, its pixels square, its axis
    through the middle.
    """
    height, width = size
    focal = width / 2 / math.tan(math.radians(degrees) / 2)
    return pinhole(size, focal, focal, width / 2, height / 2)


def pixel_rays(meta: dict[str, Any], size: tuple[int, int]) -> Array | None:
    """(H, W, 2) X / Z and Y / Z of a map of `size`.

    None where the camera is not known, or no pinhole to within FLAT_PX pixels.

    meta  a sample's meta.json: `size` (height, width) of the capture, and `intrinsics` of it
    """
    k = meta.get("intrinsics")
    if (
        not isinstance(k, dict)
        or not {"fx", "fy", "cx", "cy", "pixel_centre", "max_residual_px"} <= k.keys()
        or k["max_residual_px"] > FLAT_PX
    ):
        return None  # others' shards may hold anything of that name
    rays = np.empty((*size, 2))
    (high, wide), middle = meta["size"], k["pixel_centre"]
    rays[..., 0] = (((np.arange(size[1]) + middle) * wide / size[1] - k["cx"]) / k["fx"])[None, :]
    rays[..., 1] = (((np.arange(size[0]) + middle) * high / size[0] - k["cy"]) / k["fy"])[:, None]
    return rays


def points_from_depth(depth_mm: Array, rays: Array) -> Array:
    """(..., 3) X, Y, Z in mm of depth (...) along `rays` (..., 2)."""
    return np.concatenate([rays * depth_mm[..., None], depth_mm[..., None]], axis=-1)


def measured_rays(xyz: Array) -> Array | None:
    """(H, W, 2) X / Z and Y / Z of a point map (H, W, 3): its own where it was measured, elsewhere
    those of the pinhole that fits it.

    None where no pinhole fits to within FLAT_PX pixels
    """
    rays = pixel_rays({"size": xyz.shape[:2], "intrinsics": fit_intrinsics(xyz)}, xyz.shape[:2])
    if rays is None:
        return None
    with np.errstate(invalid="ignore"):
        seen = np.isfinite(xyz).all(axis=2) & (xyz[..., 2] > 0)
    rays[seen] = xyz[seen][:, :2] / xyz[seen][:, 2:].astype(np.float64)
    return rays
