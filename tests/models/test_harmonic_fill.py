"""Harmonic fill: Laplace's equation, as a sparse solver solves it."""

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from depthdist.models.harmonic_fill import fill_harmonic


def solved(values, known):
    """The same by the equations of all pixels at once."""
    height, width = values.shape
    numbers = np.arange(height * width).reshape(height, width)
    entries, rhs = [], np.where(known, values, 0.0).ravel()
    for row in range(height):
        for column in range(width):
            here = numbers[row, column]
            if known[row, column]:
                entries.append((here, here, 1.0))
                continue
            for y, x in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if 0 <= y < height and 0 <= x < width:
                    entries += [(here, here, 1.0), (here, numbers[y, x], -1.0)]
    rows, columns, data = zip(*entries)
    matrix = coo_matrix((data, (rows, columns)), shape=(height * width,) * 2)
    return spsolve(matrix.tocsc(), rhs).reshape(height, width)


@pytest.mark.parametrize("shape", [(40, 56), (37, 61), (1, 30), (23, 2), (1, 1)])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_it_is_what_a_sparse_solver_gives(shape, share):
    rng = np.random.default_rng(0)
    known = rng.random(shape) < share
    known[shape[0] // 2, shape[1] // 2] = True
    known[shape[0] // 4 : shape[0] // 2, : shape[1] // 3] = False  # a large hole, at the border
    known[-1, -1] = True
    values = 1000 + 300 * rng.random(shape)
    found = fill_harmonic(np.where(known, values, np.nan), known, cycles=20)
    assert np.array_equal(found[known], values[known])
    assert np.allclose(found, solved(values, known), rtol=0, atol=0.05)


def test_by_default_it_is_near_enough_for_depth():
    row, column = np.mgrid[:120, :160]
    known = (row - 60) ** 2 + (column - 70) ** 2 > 50**2  # a disk of 100 pixels
    values = np.where(known, 1500 + 300 * np.sin(column / 20) + 2.0 * row, np.nan)
    exact = solved(values, known)
    assert np.abs(fill_harmonic(values, known) - exact).max() < 0.5
    assert np.abs(fill_harmonic(values, known, cycles=0) - exact).max() > 5


def test_a_plane_is_continued_as_it_is():
    row, column = np.mgrid[:64, :96].astype(float)
    plane = 900 + 2 * row - 3 * column
    known = np.ones(plane.shape, bool)
    known[20:50, 30:80] = False
    assert np.abs(fill_harmonic(plane, known, cycles=20) - plane).max() < 1e-3


def test_everything_known_stays_and_nothing_known_is_an_error():
    values = np.arange(12.0).reshape(3, 4)
    assert np.array_equal(fill_harmonic(values, np.ones((3, 4), bool)), values)
    with pytest.raises(ValueError, match="nothing is known"):
        fill_harmonic(values, np.zeros((3, 4), bool))
