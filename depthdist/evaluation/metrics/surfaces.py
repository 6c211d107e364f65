"""Metrics of surfaces and points in space, which depth along the camera's own rays gives.

    rays = pixel_rays(meta, (H, W))                     # X / Z and Y / Z of every pixel
    # for several predictions, the tree of the ground truth's points is built once
    values, = surface_metrics([pred_mm], depth_mm, mask, rays)

Points of all maps lie on the same rays, so no camera has to be guessed. Arrays are NumPy, float64,
mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from depthdist.evaluation.metrics.registry import Metric, metrics_by_name
from depthdist.geometry.camera import points_from_depth

NEAR_MM = (1.0, 2.0, 5.0, 10.0)
REACH = 2  # pixels to each side that a normal is taken from
MOST_POINTS = 5_000  # of each map, evenly spread, that look for a nearest neighbour in the other
Array = np.ndarray


_NORMAL = (
    f"angle between normals, each the cross product of central differences over +-{REACH} pixels"
)
SURFACE_METRICS = metrics_by_name(
    [
        Metric("normal_mean_deg", "deg", "lower", f"mean {_NORMAL}"),
        Metric("normal_median_deg", "deg", "lower", f"median {_NORMAL}"),
        Metric("normal_within_11", "", "higher", f"share of pixels below 11.25 degrees: {_NORMAL}"),
        Metric(
            "chamfer_mm",
            "mm",
            "lower",
            "mean of both: mean distance of predicted points to the nearest true one, and of true"
            f" points to the nearest predicted one; at most {MOST_POINTS:,} points each ask",
        ),
        *(
            Metric(
                f"f_score@{t:g}mm",
                "",
                "higher",
                "harmonic mean of the shares of points whose nearest in the other cloud is within"
                f" {t:g} mm",
            )
            for t in NEAR_MM
        ),
    ]
)


def surface_metrics(
    preds_mm: Sequence[Array], depth_mm: Array, mask: Array, rays: Array
) -> list[dict[str, float]]:
    """Return SURFACE_METRICS of each prediction for one image.

    preds_mm, depth_mm  (H, W) mm;  mask  (H, W) bool;  rays  (H, W, 2) X / Z and Y / Z
    A value is NaN where the image has too few points for it.
    """
    cloud_g = points_from_depth(np.where(mask, depth_mm, 1.0), rays)
    normals_g = normals(cloud_g, mask)
    tree_g = cKDTree(cloud_g[mask])
    found = []
    for pred_mm in preds_mm:
        cloud_p = points_from_depth(np.where(mask, pred_mm, 1.0), rays)
        angles = angles_between(normals(cloud_p, mask), normals_g)
        found.append(_angle_metrics(angles) | cloud_distances(cKDTree(cloud_p[mask]), tree_g))
    return found


def _angle_metrics(angles: Array) -> dict[str, float]:
    """Return the metrics of angles (N,) between normals in degrees; NaN where there is none."""
    if not len(angles):
        return dict.fromkeys(["normal_mean_deg", "normal_median_deg", "normal_within_11"], math.nan)
    return {
        "normal_mean_deg": float(angles.mean()),
        "normal_median_deg": float(np.median(angles)),
        "normal_within_11": float((angles < 11.25).mean()),
    }


def normals(cloud: Array, mask: Array) -> Array:
    """Return the normals (N, 3), not of unit length, of a point map (H, W, 3).

    A normal is computed where a pixel and its four partners, REACH away, are in the mask.
    """
    valid = (
        _inner(mask, 0, 0)
        & _inner(mask, -1, 0)
        & _inner(mask, 1, 0)
        & _inner(mask, 0, -1)
        & _inner(mask, 0, 1)
    )
    across = _inner(cloud, 0, 1) - _inner(cloud, 0, -1)
    down = _inner(cloud, 1, 0) - _inner(cloud, -1, 0)
    return np.cross(down, across)[valid]


def angles_between(a: Array, b: Array) -> Array:
    """Return the angles (N,) in degrees between vectors (N, 3)."""
    # atan2 is exact for small angles, arccos is not
    across = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.degrees(np.arctan2(across, np.einsum("ij,ij->i", a, b)))


def _inner(image: Array, rows: int, columns: int) -> Array:
    """Return `image` without a border of REACH pixels, moved by rows and columns times REACH."""
    height = max(image.shape[0] - 2 * REACH, 0)
    width = max(image.shape[1] - 2 * REACH, 0)
    y = REACH + rows * REACH
    x = REACH + columns * REACH
    return image[y : y + height, x : x + width]


def cloud_distances(cloud_p: cKDTree, cloud_g: cKDTree) -> dict[str, float]:
    """Return chamfer_mm and f_score@Tmm of two clouds of points in mm; NaN if one is empty."""
    names = ["chamfer_mm", *(f"f_score@{t:g}mm" for t in NEAR_MM)]
    if not cloud_p.n or not cloud_g.n:
        return dict.fromkeys(names, math.nan)
    to_g = cloud_g.query(_thin_out(cloud_p.data))[0]
    to_p = cloud_p.query(_thin_out(cloud_g.data))[0]
    scores = []
    for t in NEAR_MM:
        precision = float((to_g <= t).mean())
        recall = float((to_p <= t).mean())
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return dict(zip(names, [float(to_g.mean() + to_p.mean()) / 2, *scores]))


def _thin_out(cloud: Array) -> Array:
    """Return at most MOST_POINTS of the points, evenly spread."""
    chosen = np.linspace(0, len(cloud) - 1, min(len(cloud), MOST_POINTS)).round().astype(int)
    return cloud[chosen]
