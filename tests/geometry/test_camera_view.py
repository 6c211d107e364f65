"""A point map that is no camera's view is named as what it looks like; every real one passes."""

import numpy as np
import pytest
from helpers.views import REAL, boxes, built_in, real, rotation, sparse

from depthdist.geometry.camera_view import find_view_problem


def flat_as(xyz, *shape):
    return np.ascontiguousarray(xyz).reshape(shape)


def in_world_frame(xyz):
    return xyz @ (rotation(0, 160) @ rotation(2, 40) @ rotation(1, 20)).T + [800, -300, 2600]


WRONG = {
    "mirrored X": (lambda p: p * [-1, 1, 1], "mirrored: X runs to the left"),
    "mirrored map": (lambda p: p[:, ::-1], "mirrored: X runs to the left"),
    "Y up": (lambda p: p * [1, -1, 1], "Y up"),
    "upside down": (lambda p: p[::-1], "upside down"),
    "turned": (lambda p: p[::-1, ::-1], "turned by 180 degrees"),
    "X and Y swapped": (lambda p: p[..., [1, 0, 2]], "X and Y are swapped"),
    "columns read as rows": (
        lambda p: flat_as(p.transpose(1, 0, 2), *p.shape),
        "column by column in an array that was filled row by row",
    ),
    "rows read as columns": (
        lambda p: flat_as(p, p.shape[1], p.shape[0], 3).transpose(1, 0, 2),
        "row by row in an array that was filled column by column",
    ),
    "planes reshaped": (lambda p: flat_as(p.transpose(2, 0, 1), *p.shape), "(3, H, W) array"),
    "turned planes reshaped": (
        lambda p: flat_as(p.transpose(2, 1, 0), *p.shape),
        "(3, W, H) array",
    ),
    "ROS": (
        lambda p: np.stack([p[..., 2], -p[..., 0], -p[..., 1]], axis=2),
        "axes look swapped: +X away from the lens, -Y right, -Z down",
    ),
    "Z, Y, X": (lambda p: p[..., ::-1], "+X away from the lens, +Y down, +Z right"),
    "height over the table": (
        lambda p: p * [1, 1, -1] + [300, -200, 2700],
        "world frame: the points are seen from (300, -200, 2700)",
    ),
    "robot's base": (in_world_frame, "world frame: the points are seen from (800, -300, 2600)"),
    "shuffled": (
        lambda p: np.random.default_rng(0).permutation(p.reshape(-1, 3)).reshape(p.shape),
        "is no camera's view",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", ["boxes", "built-in"])
def test_what_is_no_cameras_view_is_named_and_sure(kind, name):
    change, expected = WRONG[name]
    for view in [boxes(0), boxes(1)] if kind == "boxes" else built_in()[::3]:
        problem = find_view_problem(change(view.xyz).astype(np.float32))
        assert problem and expected in problem.text, (view.name, problem)
        assert problem.sure, view.name


def test_the_frame_of_a_camera_beside_this_one_is_a_warning_only():
    beside = built_in()[0].xyz + np.float32([60, 0, 0])
    problem = find_view_problem(beside)
    assert problem
    assert "frame of another camera: the points are seen from (60, 0, 0)" in problem.text
    assert not problem.sure


def test_axes_that_are_turned_a_little_are_a_warning_only():
    problem = find_view_problem((boxes(0).xyz @ rotation(2, 25).T).astype(np.float32))
    assert problem
    assert "turned by 25 degrees" in problem.text
    assert not problem.sure


@pytest.mark.parametrize("share", [1.0, 0.05])
def test_built_in_captures_with_all_faults_pass_dense_and_sparse(share):
    for view in [boxes(0), boxes(1), *built_in()]:
        assert find_view_problem(sparse(view.xyz, share)) is None, view.name


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("share", [1.0, 0.05])
def test_all_real_captures_of_five_sensors_pass_dense_and_sparse(share):
    assert len(real()) == 130
    for view in real():
        assert find_view_problem(sparse(view.xyz, share)) is None, view.name


def test_a_strong_lens_distortion_passes():
    row, column = np.mgrid[:120, :160] + 0.5
    x, y = (column - 80) / 100, (row - 60) / 100
    bent = 1 + 0.25 * (x**2 + y**2)
    z = 900 + 3 * row + 200 * (column > 70)
    xyz = np.stack([x * bent * z, y * bent * z, z], axis=2)
    assert find_view_problem(xyz.astype(np.float32)) is None


@pytest.mark.parametrize("num_points", [0, 1, 50])
def test_too_few_points_tell_nothing(num_points):
    xyz = np.full((120, 160, 3), np.nan, np.float32)
    rows, columns = np.random.default_rng(0).integers(0, 120, (2, num_points))
    xyz[rows, columns] = np.random.default_rng(1).uniform(1, 9, (num_points, 3))
    assert find_view_problem(xyz) is None


def test_points_in_one_corner_tell_nothing():
    xyz = np.full((200, 300, 3), np.nan, np.float32)
    xyz[:15, :20] = np.random.default_rng(0).uniform(1, 9, (15, 20, 3))
    assert find_view_problem(xyz) is None


def test_the_same_point_everywhere_is_no_view():
    problem = find_view_problem(np.full((40, 60, 3), 700, np.float32))
    assert problem
    assert problem.sure
