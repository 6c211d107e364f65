"""Surfaces and points in space: what depth along the camera's own rays comes to.

    rays = pixel_rays(meta, (H, W))                     # X / Z and Y / Z of every pixel (camera.py)
    # of several predictions, the truth's own points are sorted once
    values, = surface_metrics([pred_mm], depth_mm, mask, rays)

Points of all maps lie on the same rays, so no camera has to be guessed. Arrays are NumPy, float64,
mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from depthdist.evaluation.metrics.registry import Metric
from depthdist.geometry.camera import points_from_depth

NEAR_MM = (1.0, 2.0, 5.0, 10.0)
REACH = 2  # pixels to each side that a normal is taken from
# of each map, evenly spread, whose nearest neighbours among all of the other map's are looked for
MOST_POINTS = 5_000
Array = np.ndarray


def _metrics() -> dict[str, Metric]:
    normal = (
        f"angle between normals, each the cross product of central differences over +-{REACH}"
        " pixels"
    )
    rows = [
        ("normal_mean_deg", "deg", "lower", f"mean {normal}"),
        ("normal_median_deg", "deg", "lower", f"median {normal}"),
        ("normal_within_11", "", "higher", f"share of pixels below 11.25 degrees: {normal}"),
        (
            "chamfer_mm",
            "mm",
            "lower",
            (
                "mean of both: mean distance of predicted points to the nearest true one, and of"
                f" true points to the nearest predicted one; at most {MOST_POINTS:,} points"
                " each ask"
            ),
        ),
    ]
    rows += [
        (
            f"f_score@{t:g}mm",
            "",
            "higher",
            (
                "harmonic mean of the shares of points whose nearest in the other cloud is within"
                f" {t:g} mm"
            ),
        )
        for t in NEAR_MM
    ]
    return {row[0]: Metric(*row) for row in rows}


SURFACE_METRICS = _metrics()


def surface_metrics(
    preds_mm: Sequence[Array], depth_mm: Array, mask: Array, rays: Array
) -> list[dict[str, float]]:
    """All of METRICS of each prediction for one image, (H, W) each.

    NaN where it has too few points.
    """
    cloud_g = points_from_depth(np.where(mask, depth_mm, 1.0), rays)
    normals_g, tree_g = normals(cloud_g, mask), cKDTree(cloud_g[mask])
    found = []
    for pred_mm in preds_mm:
        cloud_p = points_from_depth(np.where(mask, pred_mm, 1.0), rays)
        angles = angles_between(normals(cloud_p, mask), normals_g)
        some = len(angles) > 0
        values = {
            "normal_mean_deg": float(angles.mean()) if some else math.nan,
            "normal_median_deg": float(np.median(angles)) if some else math.nan,
            "normal_within_11": float((angles < 11.25).mean()) if some else math.nan,
        }
        found.append(values | cloud_distances(cKDTree(cloud_p[mask]), tree_g))
    return found


def normals(cloud: Array, mask: Array) -> Array:
    """(N, 3) of a point map (H, W, 3), not of unit length, where a pixel and its four partners,
    REACH away, are in the mask.
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
    """(N,) degrees between vectors (N, 3)."""
    across = np.linalg.norm(
        np.cross(a, b), axis=-1
    )  # atan2 is exact for small angles, arccos is not
    return np.degrees(np.arctan2(across, np.einsum("ij,ij->i", a, b)))


def _inner(image: Array, rows: int, columns: int) -> Array:
    """`image` without its border, REACH pixels to a side."""
    height, width = image.shape[:2]
    y, x, inside = (
        REACH + rows * REACH,
        REACH + columns * REACH,
        (max(height - 2 * REACH, 0), max(width - 2 * REACH, 0)),
    )
    return image[y : y + inside[0], x : x + inside[1]]


def cloud_distances(cloud_p: cKDTree, cloud_g: cKDTree) -> dict[str, float]:
    """chamfer_mm and f_score@Tmm of two clouds of points in mm."""
    names = ["chamfer_mm", *(f"f_score@{t:g}mm" for t in NEAR_MM)]
    if not cloud_p.n or not cloud_g.n:
        return dict.fromkeys(names, math.nan)
    to_g, to_p = (
        there.query(_spread(here.data))[0]
        for here, there in ((cloud_p, cloud_g), (cloud_g, cloud_p))
    )
    scores = []
    for t in NEAR_MM:
        precision, recall = float((to_g <= t).mean()), float((to_p <= t).mean())
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return dict(zip(names, [float(to_g.mean() + to_p.mean()) / 2, *scores]))


def _spread(cloud: Array) -> Array:
    """At most MOST_POINTS of them, evenly spread."""
    return cloud[np.linspace(0, len(cloud) - 1, min(len(cloud), MOST_POINTS)).round().astype(int)]
