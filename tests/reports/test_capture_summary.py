"""What a data report knows of one capture, on depth maps made by hand."""

import numpy as np
import pytest

from depthdist.reports.capture_summary import flying_share


def test_flying_pixels_are_those_alone_in_space():
    z = np.full((40, 50), 1000.0, np.float32)
    z[:, 25:] = 1500.0  # an edge is none
    valid = np.ones(z.shape, bool)
    assert flying_share(z, valid) == 0
    z[10, 10], z[20, 24], z[30, 40] = 1300.0, 1250.0, 1400.0
    assert flying_share(z, valid) == pytest.approx(3 / 2000)
    valid[30, 40] = False
    assert flying_share(z, valid) == pytest.approx(2 / 1999)
