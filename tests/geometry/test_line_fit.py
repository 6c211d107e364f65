"""Lines agree with NumPy's polynomial fit, whatever the library that holds the values."""

import numpy as np
import pytest
import torch

from depthdist.geometry.line_fit import fit_line

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, 500)
Y = 1.7 * X - 4.0 + RNG.normal(0.0, 0.5, 500)


@pytest.mark.parametrize("values_of", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_line_is_that_of_numpys_polynomial_fit(values_of):
    slope, offset = fit_line(values_of(X), values_of(Y))
    assert [float(slope), float(offset)] == pytest.approx(np.polyfit(X, Y, 1), rel=1e-12)


@pytest.mark.parametrize("values_of", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_where_x_is_the_same_everywhere_the_line_is_flat_through_the_mean(values_of):
    slope, offset = fit_line(values_of(np.full(4, 2.0)), values_of(np.array([1.0, 2.0, 3.0, 6.0])))
    assert (float(slope), float(offset)) == (0.0, 3.0)


def test_the_shape_does_not_matter():
    assert fit_line(X.reshape(20, 25), Y.reshape(20, 25)) == pytest.approx(fit_line(X, Y))
