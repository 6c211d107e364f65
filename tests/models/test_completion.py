"""Filling holes of measured depth: nothing measured changes, and no hole has a step at its rim."""

import numpy as np
import pytest

from depthdist.geometry.measured import is_measured
from depthdist.models.completion import fill_depth

ROW, COLUMN = np.mgrid[:90, :120].astype(float)
SURFACE = 1400 + 1.5 * COLUMN + 6 * np.sin(ROW / 9)  # at most 1.7 mm from pixel to pixel
HOLE = (ROW - 45) ** 2 + (COLUMN - 60) ** 2 < 25**2


def steps_across(depth_mm, hole):
    """|differences| between neighbors of which one is in the hole."""
    down, right = hole[1:] != hole[:-1], hole[:, 1:] != hole[:, :-1]
    return np.abs(np.concatenate([np.diff(depth_mm, axis=0)[down], np.diff(depth_mm)[right]]))


@pytest.mark.parametrize("nothing", [np.nan, 0.0, np.inf, -1.0])
def test_measured_pixels_stay_and_no_rim_has_a_step(nothing):
    measured = np.where(HOLE, nothing, SURFACE).astype(np.float32)
    pred = SURFACE * 1.07 - 80 + 0.4 * ROW  # off, by more at one side of the hole than at the other
    filled = fill_depth(pred, measured)
    assert filled.dtype == np.float32 and np.array_equal(filled[~HOLE], measured[~HOLE])
    slope = steps_across(SURFACE, HOLE).max()
    assert steps_across(np.where(HOLE, pred, SURFACE), HOLE).max() > 10 * slope, "a step to remove"
    assert steps_across(filled, HOLE).max() < 1.5 * slope + 0.5
    assert np.abs(filled - SURFACE)[HOLE].max() < 3  # what differs smoothly is taken back


def test_a_prediction_that_knows_the_shape_gives_it_to_the_hole():
    bump = 40 * np.exp(-((ROW - 45) ** 2 + (COLUMN - 60) ** 2) / 100)
    surface = SURFACE - bump
    filled = fill_depth(1.1 * surface, np.where(HOLE, np.nan, surface))
    flat = fill_depth(np.full_like(surface, 1000.0), np.where(HOLE, np.nan, surface))
    error, without = (np.abs(one - surface)[HOLE].max() for one in (filled, flat))
    assert error < 0.5 and without > 30


def test_without_a_measured_pixel_it_is_the_prediction():
    assert not is_measured(np.array([np.nan, 0, -3, np.inf])).any()
    pred = SURFACE.astype(np.float32)
    assert np.array_equal(fill_depth(pred, np.full_like(pred, np.nan)), pred)
