"""What the detail stage's network gets of an image and of its coarse depth, against NumPy."""

import numpy as np
import pytest
import torch

from depthdist.models.detail_network import (
    CONTRAST,
    LOG_DEPTH,
    LOG_IMAGE,
    MOST,
    SLOPE_SPREAD,
    UNIT,
    WINDOW,
    DetailNetwork,
)


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_the_network_sees_coarse_depth_at_a_quarter_as_the_mean_of_4_x_4_pixels(size):
    coarse_log = 7 + torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    network = DetailNetwork().begin(0)
    seen = []
    network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.zeros(1, *size, 3, dtype=torch.uint8), coarse_log)
    (inputs,) = seen
    assert inputs.shape[2:] == (16, 24), "of 64 x 96, the next multiples of 32"
    assert torch.isfinite(inputs).all()
    quarter = inputs[0, 51] * LOG_DEPTH[1] + LOG_DEPTH[0]
    for row, column in np.ndindex(*quarter.shape):
        part = coarse_log[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].numpy()
        if part.size:  # beyond it is padding
            assert float(quarter[row, column]) == pytest.approx(part.mean(), abs=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_its_residual_is_added_and_is_nothing_at_first(size):
    random = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (2, *size, 3), generator=random, dtype=torch.uint8)
    coarse_log = 7 + torch.rand(2, *size, generator=random)
    network = DetailNetwork().begin(0)
    assert torch.equal(network(rgb, coarse_log), coarse_log)
    torch.nn.init.constant_(network.head.bias, 3.0)
    assert torch.allclose(network(rgb, coarse_log), coarse_log + 3 * UNIT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_contrast_of_16_pixels_of_each_color_then_light_around_depth_and_slopes(dtype):
    random = np.random.default_rng(0)
    # dark below: beyond its contrast nothing counts there
    rgb = random.integers(60, 90, (2, 96, 128, 3), dtype=np.uint8)
    rgb[:, 80:] //= 9
    log_depth = 7.2 + 0.01 * random.random((2, 24, 32))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = DetailNetwork().inputs(torch.from_numpy(rgb), torch.from_numpy(log_depth).float())
    assert found.shape == (2, 54, 24, 32)
    assert found.dtype == dtype
    light = (np.log(rgb / 255 + 0.02) - LOG_IMAGE[0]) / LOG_IMAGE[1]
    pixels = light.reshape(2, 24, 4, 32, 4, 3).transpose(0, 5, 2, 4, 1, 3)  # (2, 3, 4, 4, 24, 32)
    expected = np.zeros(found.shape)
    around = np.zeros((2, 3, 24, 32))
    half = WINDOW // 2
    for row, column in np.ndindex(24, 32):
        rows, columns = (slice(max(0, at - half), at + half + 1) for at in (row, column))
        around[:, :, row, column] = pixels[..., rows, columns].mean((2, 3, 4, 5))
    contrast = CONTRAST * (pixels - around[:, :, None, None])
    assert (np.abs(contrast) > MOST).any() and (np.abs(contrast) < MOST).any()
    expected[:, :48] = contrast.clip(-MOST, MOST).reshape(2, 48, 24, 32)
    expected[:, 48:51] = around
    expected[:, 51] = (log_depth - LOG_DEPTH[0]) / LOG_DEPTH[1]
    expected[:, 52, :, :-1] = np.diff(log_depth, axis=2) / SLOPE_SPREAD
    expected[:, 53, :-1] = np.diff(log_depth, axis=1) / SLOPE_SPREAD
    share = 0.004 if dtype == torch.bfloat16 else 1e-5  # 8 bits
    assert np.allclose(found.float().numpy(), expected, rtol=share, atol=2e-4)
