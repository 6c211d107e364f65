"""Every spelling of "no value" is recognized by its repetition, and nothing that was measured."""

import numpy as np
import pytest
from helpers.captures import write_capture
from helpers.views import REAL, boxes, built_in, real

from depthdist.captures.missing_values import missing_constants
from depthdist.captures.readers import read_point_map
from depthdist.core.errors import BadFile

VIEW = boxes(0)
HOLES = ~np.isfinite(VIEW.xyz[..., 2])
MEASURED = VIEW.xyz[~HOLES]
ALL_THREE = [-1, -9999, -32768, 65535, 32767, 1e9, 1e6, 10, 4000, -1e30, np.inf, -np.inf]


def stored(tmp_path, xyz):
    path = tmp_path / "map.npy"
    np.save(path, xyz.astype(np.float32))
    return path


@pytest.mark.parametrize("value", ALL_THREE)
def test_a_constant_in_place_of_points_is_no_value(tmp_path, value):
    xyz = np.where(HOLES[..., None], np.float32(value), VIEW.xyz)
    found = read_point_map(stored(tmp_path, xyz))
    np.testing.assert_array_equal(np.isfinite(found.xyz[..., 2]), ~HOLES)
    name = "inf" if np.isinf(value) else f"{value:g}"
    assert found.no_value[name] == HOLES.sum()
    np.testing.assert_array_equal(found.xyz[~HOLES], MEASURED)


@pytest.mark.parametrize("value", [-1, -9999, 65535, 1e9])
@pytest.mark.parametrize("across", ["zero", "NaN", "rays"])
def test_a_constant_in_z_alone_is_no_value(tmp_path, value, across):
    xyz = VIEW.xyz.copy()
    row, column = np.mgrid[:120, :160][:, HOLES]
    xyz[HOLES] = 0 if across == "zero" else np.nan
    if across == "rays":
        xyz[HOLES, 0], xyz[HOLES, 1] = column * value / 176, row * value / 176
    xyz[HOLES, 2] = value
    found = read_point_map(stored(tmp_path, xyz))
    assert found.no_value[f"{value:g}"] == HOLES.sum()
    np.testing.assert_array_equal(found.xyz[..., 2] > 0, ~HOLES)


def test_the_lens_itself_is_no_value(tmp_path):
    found = read_point_map(stored(tmp_path, np.nan_to_num(VIEW.xyz, nan=0.0)))
    assert found.no_value == {"0": HOLES.sum()}


def test_several_spellings_in_one_map_are_told_apart(tmp_path):
    xyz = VIEW.xyz.copy()
    rows, columns = np.nonzero(HOLES)
    third = len(rows) // 3
    xyz[rows[:third], columns[:third]] = -1
    xyz[rows[third : 2 * third], columns[third : 2 * third]] = 65535
    found = read_point_map(stored(tmp_path, xyz))
    assert found.no_value == {"NaN": HOLES.sum() - 2 * third, "-1": third, "65535": third}


def test_no_value_in_most_of_the_map_does_not_turn_the_rest_away(tmp_path):
    xyz = np.where(HOLES[..., None], -1, VIEW.xyz)
    xyz[:, :110] = -1
    found = read_point_map(stored(tmp_path, xyz))
    assert found.no_value["-1"] > 0.6 * HOLES.size
    np.testing.assert_array_equal(found.xyz[..., 2] > 0, (xyz[..., 2] > 0))


@pytest.mark.parametrize("value", [np.nan, 0, -1, -np.inf])
def test_a_map_of_nothing_else_is_refused_with_what_it_holds(tmp_path, value):
    with pytest.raises(BadFile, match=r"no valid pixel|negative"):
        read_point_map(stored(tmp_path, np.full((40, 50, 3), value)))


def test_z_that_is_negative_everywhere_is_no_missing_value_and_named(tmp_path):
    with pytest.raises(BadFile, match=r"Z is negative in .* away from the lens"):
        read_point_map(stored(tmp_path, VIEW.xyz * [1, -1, -1]))


def test_a_map_with_nothing_in_x_and_y_keeps_its_planes(tmp_path):
    xyz = np.zeros((60, 80, 3), np.float32)
    xyz[..., 2] = 900
    xyz[:, 40:, 2] = 1200
    assert missing_constants(xyz) == []


def test_what_was_measured_is_never_taken_for_no_value():
    for view in [boxes(0), boxes(1), *built_in()]:
        assert missing_constants(view.xyz) == [], view.name


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_real_captures_in_whole_millimetres_keep_all_they_measured():
    for view in real():
        assert missing_constants(view.xyz) == [], view.name


def test_a_plane_of_one_depth_along_its_rays_is_kept(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", 3, (60, 80))
    xyz = np.load(tmp_path / "a.npy")
    xyz[:20] *= 700 / xyz[:20, :, 2:]
    assert missing_constants(xyz) == []
