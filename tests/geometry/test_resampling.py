"""Resampling agrees with independent implementations."""

import math

import numpy as np
import pytest
import torch
from helpers.captures import capture
from PIL import Image

from depthdist.geometry.image_resizing import resize_rgb
from depthdist.geometry.resampling import upsample, upsample_crop


@pytest.mark.parametrize("size", [(70, 140), (14, 14), (30, 40)])
def test_resize_is_that_of_the_models_image_processor(size):
    processors = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    rgb = capture()[0]
    processor = processors.DPTImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        keep_aspect_ratio=False,
        ensure_multiple_of=1,
        do_rescale=False,
        do_normalize=False,
        resample=3,
    )
    theirs = np.asarray(processor(Image.fromarray(rgb))["pixel_values"][0]).transpose(1, 2, 0)
    assert np.abs(resize_rgb(rgb, size).astype(float) - theirs).max() <= 1


def cubic_weights(old, new):
    """(new, old) float64: cubic convolution (Keys 1981) with a = -0.75, pixel centres
    (align_corners=False), edges repeated."""
    a, weights = -0.75, np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            x = abs(centre - tap)
            w = (
                (a + 2) * x**3 - (a + 3) * x**2 + 1
                if x <= 1
                else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            )
            weights[i, min(max(tap, 0), old - 1)] += w
    return weights


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((7, 9), (19, 31)),
        ((14, 21), (15, 22)),
        ((12, 10), (5, 7)),
        ((1, 6), (4, 12)),
        ((5, 8), (5, 16)),
    ],
)
def test_upsampling_equals_an_independent_bicubic(old, new):
    image = np.random.default_rng(1).random((2, *old))
    expected = np.einsum(
        "Hh,bhw,Ww->bHW", cubic_weights(old[0], new[0]), image, cubic_weights(old[1], new[1])
    )
    assert np.abs(upsample(torch.from_numpy(image), new).double().numpy() - expected).max() < 2e-6


@pytest.mark.parametrize(
    ("old", "new"), [((7, 9), (19, 31)), ((12, 10), (5, 7)), ((5, 8), (5, 16))]
)
def test_the_gradient_of_upsampling_is_the_transposed_bicubic(old, new):
    image, grad = torch.rand(2, *old).requires_grad_(), torch.rand(2, *new, dtype=torch.float64)
    upsample(image, new).backward(grad.float())
    expected = np.einsum(
        "Hh,bHW,Ww->bhw", cubic_weights(old[0], new[0]), grad.numpy(), cubic_weights(old[1], new[1])
    )
    assert np.abs(image.grad.double().numpy() - expected).max() < 2e-6


@pytest.mark.parametrize(("old", "new"), [((7, 9), (19, 31)), ((5, 8), (5, 16))])
def test_bilinear_upsampling_equals_torchs_own_in_values_and_gradients(old, new):
    image, grad = torch.rand(2, *old).requires_grad_(), torch.rand(2, *new)
    exact = image.detach().double().requires_grad_()
    upsample(image, new, "bilinear").backward(grad)
    expected = torch.nn.functional.interpolate(
        exact[:, None], new, mode="bilinear", align_corners=False
    )[:, 0]
    expected.backward(grad.double())
    assert (upsample(image, new, "bilinear") - expected).abs().max() < 1e-6
    assert (image.grad - exact.grad).abs().max() < 2e-6


def test_an_image_of_the_right_size_stays_as_it_is():
    image = torch.rand(2, 6, 7)
    assert torch.equal(upsample(image, (6, 7)), image)
    assert torch.equal(upsample(image, torch.Size([6, 7])), image)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("corner", "shape"), [((0, 0), (90, 131)), ((28, 67), (62, 64))])
def test_an_upsampled_crop_is_the_crop_of_the_upsampled_whole(corner, shape, mode):
    pred = torch.rand(28, 42, generator=torch.manual_seed(0))
    (top, left), (height, width) = corner, shape
    expected = upsample(pred[None], (90, 131), mode)[0, top : top + height, left : left + width]
    found = upsample_crop(pred, (90, 131), corner, shape, mode)
    assert found.shape == shape and torch.allclose(found, expected, rtol=0, atol=1e-6)
