"""What the detail stage's network gets of an image and of its coarse depth, against NumPy."""

import numpy as np
import pytest
import torch

from depthdist.geometry.depth_range import DepthRange, denormalize_depth
from depthdist.geometry.resampling import upsample
from depthdist.models.detail import crop_inputs
from depthdist.models.detail_network import LOG_DEPTH, LOG_IMAGE, SLOPE_SPREAD, DetailNetwork

BOUNDS = DepthRange(300.0, 4000.0)


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_coarse_depth_at_a_quarter_is_the_mean_logarithm_of_4_x_4_pixels(size):
    pred = torch.rand(14, 21, generator=torch.Generator().manual_seed(0))
    quarter, full = crop_inputs(pred, size, BOUNDS)
    exact = np.log(denormalize_depth(upsample(pred[None], size), BOUNDS)[0].double().numpy())
    assert np.abs(full.numpy() - exact).max() < 1e-5
    assert quarter.shape == (16, 24), "of 64 x 96, the next multiples of 32"
    for row, column in np.ndindex(quarter.shape):
        part = exact[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        if part.size:  # beyond it is padding
            assert float(quarter[row, column]) == pytest.approx(part.mean(), abs=1e-5)
    assert torch.isfinite(quarter).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_the_logarithm_of_16_pixels_of_each_color_then_depth_and_slopes(dtype):
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    log_depth = 7.2 + 0.2 * random.random((2, 8, 16))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = DetailNetwork().inputs(torch.from_numpy(rgb), torch.from_numpy(log_depth).float())
    assert found.shape == (2, 51, 8, 16)
    assert found.dtype == dtype
    light = (np.log(rgb / 255 + 0.02) - LOG_IMAGE[0]) / LOG_IMAGE[1]
    expected = np.zeros(found.shape)
    for color, row, column in np.ndindex(3, 4, 4):
        expected[:, 16 * color + 4 * row + column] = light[:, row::4, column::4, color]
    expected[:, 48] = (log_depth - LOG_DEPTH[0]) / LOG_DEPTH[1]
    expected[:, 49, :, :-1] = np.diff(log_depth, axis=2) / SLOPE_SPREAD
    expected[:, 50, :-1] = np.diff(log_depth, axis=1) / SLOPE_SPREAD
    share = 0.004 if dtype == torch.bfloat16 else 1e-5  # 8 bits
    assert np.allclose(found.float().numpy(), expected, rtol=share, atol=2e-4)
