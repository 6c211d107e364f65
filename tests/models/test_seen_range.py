"""What a stage was trained on, and images that lie outside of it."""

import numpy as np
import pytest

from depthdist.models.completion_maps import WorkingMaps
from depthdist.models.seen_range import SeenRange, measure_images, remarks

SEEN = SeenRange((40.0, 60.0), (1000.0, 2000.0))


def image(level, depth=1500.0):
    rgb = np.full((40, 60, 3), level, np.uint8)
    return rgb, np.full((40, 60), depth, np.float32)


def test_the_range_of_images_by_hand():
    maps = []
    for level, near in ((30, 900), (50, 1100)):
        depth = np.linspace(near, near + 1000, 400).reshape(20, 20).astype(np.float32)
        depth[0, :2] = 0  # not measured
        depth[-1, -1] = 9000  # alone: it does not count
        rgb = np.full((20, 20, 3), level, np.uint8)
        maps.append(WorkingMaps(rgb, depth, np.zeros_like(depth)))
    seen = measure_images(maps)
    assert seen.brightness == (30, 50)
    assert seen.depth_mm == pytest.approx((915, 2090), abs=12)


@pytest.mark.parametrize(
    ("level", "depth", "kinds"),
    [
        (50, 1500, []),
        (38, 1500, []),  # within 15 % of the range beside it
        (20, 1500, ["exposure"]),
        (90, 1500, ["exposure"]),
        (50, 700, ["depth"]),
        (50, 2600, ["depth"]),
        (20, 700, ["exposure", "depth"]),
    ],
)
def test_an_image_outside_is_remarked_with_the_measure_that_said_so(level, depth, kinds):
    found = remarks(SEEN, *image(level, depth))
    assert list(found) == kinds
    if "exposure" in kinds:
        assert found["exposure"] == (
            f"brightness {level} (mean level of 255): the training images had 40 .. 60"
        )
    if "depth" in kinds:
        assert "100% of what was measured lies outside the 1000 .. 2000 mm" in found["depth"]


def test_a_few_far_pixels_and_holes_are_no_remark():
    rgb, depth = image(50)
    depth[:4] = 3000  # a seventh of what is looked at
    depth[5:20] = np.nan
    assert remarks(SEEN, rgb, depth) == {} and remarks(SEEN, rgb, None) == {}
    assert remarks(SEEN, rgb, np.full_like(depth, np.nan)) == {}
