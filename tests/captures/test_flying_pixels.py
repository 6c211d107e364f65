"""Flying pixels, on depth maps made by hand and against SciPy on captures."""

import numpy as np
from helpers.views import built_in
from scipy import ndimage

from depthdist.captures.flying_pixels import FLYING_MM, FLYING_SHARE, find_flying


def test_flying_pixels_are_those_alone_in_space():
    z = np.full((40, 50), 1000.0, np.float32)
    z[:, 25:] = 1500.0  # an edge is none
    assert not find_flying(z).any()
    z[10, 10], z[20, 24], z[30, 40] = 1300.0, 1250.0, 1400.0
    assert np.argwhere(find_flying(z)).tolist() == [[10, 10], [20, 24], [30, 40]]
    z[30, 40] = np.nan
    assert np.argwhere(find_flying(z)).tolist() == [[10, 10], [20, 24]]


def test_a_pixel_among_holes_is_not_known_to_fly():
    z = np.full((9, 9), np.nan, np.float32)
    z[4, 4] = 900
    assert not find_flying(z).any()


def test_they_are_those_that_filters_find_inside_the_map():
    for view in built_in():
        z = view.xyz[..., 2]
        valid = np.isfinite(z) & (z > 0)
        filled = np.where(valid, z, np.inf)
        limit = np.maximum(FLYING_MM, FLYING_SHARE * filled)
        near = np.zeros(z.shape, bool)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                if down or right:
                    with np.errstate(invalid="ignore"):
                        other = np.roll(filled, (down, right), (0, 1))
                        near |= np.abs(other - filled) <= limit
        around = ndimage.uniform_filter(valid.astype(np.float64), 3) > 2.5 / 9
        expected = valid & ~near & around
        np.testing.assert_array_equal(find_flying(z)[1:-1, 1:-1], expected[1:-1, 1:-1])
