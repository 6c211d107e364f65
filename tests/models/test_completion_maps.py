"""What the completion network sees: maps at the working size, guesses, and back to full size."""

import numpy as np
import pytest
import torch

from depthdist.geometry.depth_range import DepthRange, normalize_valid
from depthdist.models.completion_maps import (
    MOST,
    WorkingMaps,
    network_inputs,
    next_measured,
    to_full_size,
    working_maps,
    working_stride,
)

BOUNDS = DepthRange(250.0, 4000.0)


@pytest.mark.parametrize(("width", "stride"), [(1944, 4), (972, 2), (640, 1), (98, 1), (1280, 3)])
def test_the_working_size_is_about_486_wide(width, stride):
    assert working_stride(width) == stride


def test_maps_are_the_measured_pixel_nearest_to_a_squares_middle_and_the_images_mean():
    height, width = 85, 1943  # a row and a column more than four times something
    measured = np.arange(height * width, dtype=np.float64).reshape(height, width) + 1
    measured[2, 6] = np.nan  # the middle of a square
    measured[4:8, 8:12] = np.nan  # all of one
    rgb = np.full((height, width, 3), 90, np.uint8)
    pred = normalize_valid(torch.full((10, 20), 1234.5), BOUNDS)
    maps = working_maps(rgb, measured, pred, BOUNDS)
    assert maps.rgb.shape == (21, 485, 3) and (maps.rgb == 90).all()
    expected = measured[2:84:4, 2:1940:4].astype(np.float32)
    expected[0, 1] = measured[1, 6]  # the first of those beside it
    expected[1, 2] = 0
    assert np.array_equal(maps.depth_mm, expected)
    assert np.allclose(maps.log_pred, np.log(1234.5), atol=1e-4)


def test_next_measured_pixels_by_hand():
    random = np.random.default_rng(0)
    values, measured = random.random((9, 13)), random.random((9, 13)) < 0.3
    found = next_measured(values, measured)
    moves = [(0, -1), (0, 1), (-1, 0), (1, 0)]
    for (value, steps), (down, right) in zip(found, moves):
        for row, column in np.ndindex(values.shape):
            r, c, count = row, column, 0
            while 0 <= r < 9 and 0 <= c < 13 and not measured[r, c]:
                r, c, count = r + down, c + right, count + 1
            inside = 0 <= r < 9 and 0 <= c < 13
            assert steps[row, column] == (count if inside else -1)
            if inside:
                assert value[row, column] == values[r, c]


def test_guesses_are_what_was_measured_where_it_was_and_the_far_side_is_among_them():
    depth = np.full((40, 60), 2000.0, np.float32)
    depth[:, 30:] = 1000  # a near object
    depth[10:20, 24:30] = 0  # its shadow
    maps = WorkingMaps(
        np.full((40, 60, 3), 30, np.uint8), depth, np.full((40, 60), np.log(1500), np.float32)
    )
    inputs = network_inputs(maps)
    measured = depth > 0
    assert np.allclose(np.exp(inputs.guesses[:, measured]), depth[measured], rtol=1e-5)
    left, right = np.exp(inputs.guesses[2:4, 15, 27])
    assert left == pytest.approx(2000) and right == pytest.approx(1000)
    assert np.isfinite(inputs.channels).all()


def test_without_a_measured_pixel_every_guess_is_the_prediction():
    pred = np.log(np.linspace(900, 1800, 30 * 50)).reshape(30, 50).astype(np.float32)
    nothing = WorkingMaps(np.zeros((30, 50, 3), np.uint8), np.zeros_like(pred), pred)
    inputs = network_inputs(nothing)
    assert all(np.array_equal(guess, pred) for guess in inputs.guesses)
    assert (inputs.channels[-1] == MOST).all()


@pytest.mark.parametrize("size", [(84, 1940), (87, 1943), (72, 98)])
def test_full_size_and_back(size):
    stride = working_stride(size[1])
    small = (size[0] // stride, size[1] // stride)
    ramp = np.add.outer(3.0 * np.arange(small[0]), np.arange(small[1])).astype(np.float32)
    full = to_full_size(ramp, size)
    assert full.shape == size
    blocks = full[: small[0] * stride, : small[1] * stride]
    means = blocks.reshape(small[0], stride, small[1], stride).mean((1, 3))
    assert np.allclose(means[1:-1, 1:-1], ramp[1:-1, 1:-1], atol=1e-2)
    assert np.allclose(to_full_size(np.full(small, 7.0, np.float32), size), 7.0)
