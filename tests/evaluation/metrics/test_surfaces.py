"""Normals and point clouds: against planes worked out, a k-d tree's brute-force twin, and captures
with a known camera."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from depthdist.evaluation.metrics import surfaces
from depthdist.evaluation.metrics.surfaces import (
    NEAR_MM,
    SURFACE_METRICS,
    angles_between,
    cloud_distances,
    normals,
    surface_metrics,
)
from depthdist.geometry.camera import pixel_rays, points_from_depth

SIZE = (40, 60)
META = {
    "size": [40, 60],
    "intrinsics": {
        "fx": 80.0,
        "fy": 82.0,
        "cx": 30.0,
        "cy": 20.0,
        "max_residual_px": 0.01,
        "pixel_centre": 0.5,
    },
}
RAYS = pixel_rays(META, SIZE)


def plane(normal, distance_mm=1000.0):
    """Depth of a plane through (0, 0, distance) with that normal."""
    n = np.asarray(normal, float)
    return distance_mm * n[2] / (RAYS[..., 0] * n[0] + RAYS[..., 1] * n[1] + n[2])


def of_one(p, g, mask):
    """SURFACE_METRICS of one prediction."""
    (found,) = surface_metrics([p], g, mask, RAYS)
    return found


def test_rays_are_those_of_the_camera_at_any_size():
    assert RAYS[20, 30] == pytest.approx([0.5 / 80, 0.5 / 82])
    half = pixel_rays(META, (20, 30))
    assert half[3, 4] == pytest.approx(
        RAYS[6:8, 8:10].mean(axis=(0, 1))
    )  # the middle of the four pixels it covers
    assert pixel_rays({**META, "intrinsics": None}, SIZE) is None
    assert (
        pixel_rays({**META, "intrinsics": {**META["intrinsics"], "max_residual_px": 3.0}}, SIZE)
        is None
    )


def test_rays_of_a_rendered_capture_give_its_point_map(tmp_path):
    from depthdist.geometry.camera import fit_intrinsics
    from depthdist.synthetic.tires import render as tires

    capture = tires.render(tires.Settings(pairs=1, size=(90, 146)), 0)
    rays = pixel_rays({"size": [90, 146], "intrinsics": fit_intrinsics(capture.xyz)}, (90, 146))
    z = capture.xyz[..., 2].astype(float)
    assert np.nanmax(np.abs(points_from_depth(z, rays) - capture.xyz)) < 0.05


@pytest.mark.parametrize("degrees", [0.001, 5.0, 40.0])
def test_the_angle_between_two_planes_is_found_everywhere(degrees):
    angle = math.radians(degrees)
    a, b = plane((0.2, 0.1, 1.0)), None
    n = np.array([0.2, 0.1, 1.0]) / np.linalg.norm([0.2, 0.1, 1.0])
    side = np.cross(n, [0, 1, 0]) / np.linalg.norm(np.cross(n, [0, 1, 0]))
    b = plane(math.cos(angle) * n + math.sin(angle) * side)
    found = angles_between(
        *(normals(points_from_depth(z, RAYS), np.ones(SIZE, bool)) for z in (a, b))
    )
    assert len(found) == 36 * 56 and found == pytest.approx(np.full(len(found), degrees), abs=1e-6)


def test_a_hole_takes_the_normals_around_it_out():
    mask = np.ones(SIZE, bool)
    mask[20, 30] = False
    a = points_from_depth(plane((0, 0, 1)), RAYS)
    assert len(normals(a, mask)) == 36 * 56 - 5


def test_distances_equal_brute_force():
    rng = np.random.default_rng(0)
    p, g = rng.uniform(0, 30, (200, 3)), rng.uniform(0, 30, (150, 3))
    all_of_them = cdist(p, g)
    to_g, to_p = all_of_them.min(axis=1), all_of_them.min(axis=0)
    found = cloud_distances(cKDTree(p), cKDTree(g))
    assert found["chamfer_mm"] == pytest.approx((to_g.mean() + to_p.mean()) / 2)
    for t in NEAR_MM:
        precision, recall = (to_g <= t).mean(), (to_p <= t).mean()
        assert found[f"f_score@{t:g}mm"] == pytest.approx(
            2 * precision * recall / (precision + recall) if precision + recall else 0
        )


def test_several_predictions_are_measured_as_each_alone_and_the_truths_points_are_sorted_once(
    monkeypatch,
):
    rng, sorted_ = np.random.default_rng(0), []
    g, mask = plane((0.3, 0, 1)), rng.random(SIZE) > 0.2
    preds = [g + rng.uniform(-3, 3, SIZE) for _ in range(3)]
    alone = [of_one(p, g, mask) for p in preds]
    monkeypatch.setattr(
        surfaces, "cKDTree", lambda cloud: sorted_.append(len(cloud)) or cKDTree(cloud)
    )
    assert surface_metrics(preds, g, mask, RAYS) == alone and sorted_ == [mask.sum()] * 4


def test_an_offset_along_the_axis_is_the_distance_of_two_planes():
    wall = np.full(SIZE, 1000.0)
    found = of_one(wall + 3.0, wall, np.ones(SIZE, bool))
    assert (
        found["normal_mean_deg"] == pytest.approx(0, abs=1e-9) and 3.0 <= found["chamfer_mm"] < 3.2
    )
    assert found["f_score@2mm"] == 0 and found["f_score@10mm"] == 1


def test_perfect_is_best_and_junk_outside_the_mask_is_not_looked_at():
    rng = np.random.default_rng(0)
    depth_mm = plane((0.3, 0, 1)) + rng.uniform(0, 2, SIZE)
    mask = rng.random(SIZE) > 0.2
    found = of_one(depth_mm, depth_mm, mask)
    for name, metric in SURFACE_METRICS.items():
        assert found[name] == pytest.approx({"lower": 0, "higher": 1}[metric.better], abs=1e-9), (
            name
        )
    pred_mm = depth_mm + rng.uniform(-3, 3, SIZE)
    clean = of_one(pred_mm, depth_mm, mask)
    for junk in (math.nan, math.inf, 0.0):
        assert of_one(np.where(mask, pred_mm, junk), np.where(mask, depth_mm, junk), mask) == clean
    empty = of_one(depth_mm, depth_mm, np.zeros(SIZE, bool))
    assert all(math.isnan(value) for value in empty.values()) and set(empty) == set(SURFACE_METRICS)
