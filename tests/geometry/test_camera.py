"""Rays and points of a pinhole; the intrinsics are found again from the points."""

import numpy as np
import pytest
from helpers.captures import capture

from depthdist.geometry.camera import (
    fit_intrinsics,
    measured_rays,
    pinhole,
    pinhole_from_fov,
    pixel_rays,
    points_from_depth,
)


def test_the_intrinsics_of_a_point_map_are_found_again():
    found = fit_intrinsics(capture()[1])
    assert {name: found[name] for name in ("fx", "fy", "cx", "cy")} == pytest.approx(
        {"fx": 50.0, "fy": 60.0, "cx": 21.0, "cy": 14.0}, abs=1e-3
    )
    assert found["max_residual_px"] < 1e-3


def test_points_of_a_pinhole_have_its_intrinsics():
    meta = pinhole((30, 40), 50.0, 60.0, 21.0, 14.0)
    depth_mm = np.random.default_rng(0).uniform(500.0, 2000.0, (30, 40))
    found = fit_intrinsics(points_from_depth(depth_mm, pixel_rays(meta, (30, 40))))
    assert found == pytest.approx(meta["intrinsics"], abs=1e-3)


def test_the_field_of_view_spans_the_width():
    rays = pixel_rays(pinhole_from_fov((10, 20), 90.0), (10, 20))
    half_pixel = 1 / 20  # from a pixel's center to its edge, as X / Z
    assert rays[0, -1, 0] + half_pixel == pytest.approx(1.0)
    assert rays[0, 0, 0] - half_pixel == pytest.approx(-1.0)


def test_measured_rays_are_the_maps_own_and_the_pinholes_in_its_holes():
    xyz = capture()[1]
    rays = measured_rays(xyz)
    expected = pixel_rays(pinhole((30, 40), 50.0, 60.0, 21.0, 14.0), (30, 40))
    assert np.abs(rays - expected).max() < 1e-4
    measured = np.isfinite(xyz).all(axis=2)
    assert np.array_equal(rays[measured], xyz[measured][:, :2] / xyz[measured][:, 2:].astype(float))


def test_a_map_that_is_no_pinholes_has_no_rays():
    xyz = capture()[1]
    xyz[..., 0] += 200 * np.sin(xyz[..., 2])
    assert measured_rays(xyz) is None
