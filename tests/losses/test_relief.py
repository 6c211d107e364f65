"""The loss of the detail stage: relief in mm, blind to where the coarse depth lies."""

import numpy as np
import pytest
import torch

from depthdist.losses.relief import ReliefWeights, relief_losses

WIDTH = 972  # half of the full one: relief over 2 and 5 pixels, contours over 1 and 2
ONES = ReliefWeights()


def scene(seed=0, shape=(2, 24, 30)):
    """Depth (B, H, W) in mm with a groove, a silhouette and holes, and where it was measured."""
    rng = np.random.default_rng(seed)
    depth = 1500 + 3 * np.arange(shape[2]) + rng.normal(0, 0.5, shape)
    depth[:, :, 8:14] += 6
    depth[:, 15:] += 120
    mask = rng.random(shape) > 0.1
    return torch.from_numpy(np.where(mask, depth, 0)).float(), torch.from_numpy(mask)


def logarithm(depth_mm):
    return depth_mm.clamp(min=1).log()


def losses(log_depth, depth_mm, mask, settings=ONES, width=WIDTH):
    return relief_losses(settings, log_depth, depth_mm, mask, width)


def test_a_perfect_prediction_loses_nothing():
    depth, mask = scene()
    for name, value in losses(logarithm(depth), depth, mask).items():
        assert value.shape == (2,) and float(value.abs().max()) < 1e-3, name


def test_its_relief_sees_neither_that_the_coarse_depth_is_off_nor_slanted():
    depth, mask = scene()
    row, column = (torch.arange(n, dtype=torch.float32) for n in depth.shape[1:])
    error = 40 + 2 * column - 3 * row[:, None]  # mm
    off = losses(logarithm(depth) + error / depth.clamp(min=1), depth, mask)
    assert float(off["relief"].max()) < 0.002
    assert float(off["contour"].min()) > 1 and float(off["offset"].min()) > 10
    flat = depth.clone()
    flat[:, :, 8:14] -= 6  # the groove is missed
    missed = losses(logarithm(flat), depth, mask)
    assert float(missed["relief"].min()) > 1


def test_what_is_in_holes_does_not_count():
    depth, mask = scene()
    coarse = logarithm(depth + 3 * torch.rand(depth.shape, generator=torch.manual_seed(0)))
    expected = losses(coarse, depth, mask)
    found = losses(torch.where(mask, coarse, 9.0), torch.where(mask, depth, 77.0), mask)
    for name, value in expected.items():
        assert torch.equal(found[name], value) and float(value.min()) > 0.01, name


def test_without_a_measured_pixel_loss_and_gradient_are_zero():
    depth, mask = scene()
    mask[0] = False
    correction = torch.zeros(depth.shape, requires_grad=True)
    found = losses(logarithm(depth) + 0.01 + correction, depth, mask)
    found["loss"].sum().backward()
    empty, measured = found["loss"].tolist()
    assert empty == 0 and measured > 0
    assert correction.grad.isfinite().all()
    assert not correction.grad[0].any() and correction.grad[1].any()


def by_hand(predicted_log, depth, mask):
    """The terms of one crop, as the module's docstring has them, in float64 and pixel by pixel."""
    depth = np.where(mask, depth, 1.0)
    error = (predicted_log - np.log(depth)) * depth
    terms = {"relief": [], "contour": []}

    def along(axis):
        for line in range(depth.shape[1 - axis]):
            yield tuple(np.take(array, line, axis=1 - axis) for array in (error, depth, mask))

    for axis in (0, 1):
        for k in (2, 5):
            found = []
            for e, z, m in along(axis):
                for i in range(k, len(e) - k):
                    if m[i - k] and m[i] and m[i + k]:
                        bend = abs(z[i - k] - 2 * z[i] + z[i + k])
                        d = abs(e[i - k] - 2 * e[i] + e[i + k])
                        weight = 1 if bend < 1.5 else 6 if bend < 25 else 0
                        found.append(weight * (d * d / 6 if d < 3 else d - 1.5))
            terms["relief"].append(np.mean(found))
        for k in (1, 2):
            found = []
            for e, _, m in along(axis):
                found += [abs(e[i + k] - e[i]) for i in range(len(e) - k) if m[i] and m[i + k]]
            terms["contour"].append(np.mean(found))
    means = {name: np.mean(found) for name, found in terms.items()}
    return {**means, "offset": np.abs(error[mask]).mean()}


def test_it_is_what_the_formulas_give_in_float64():
    depth, mask = scene(1, (1, 17, 21))
    generator = torch.manual_seed(1)
    coarse = logarithm(depth + 4 * torch.randn(depth.shape, generator=generator))
    correction = 0.002 * torch.randn(depth.shape, generator=generator)
    settings = ReliefWeights(relief=2.0, contour=0.5, offset=0.1)
    found = losses(coarse + correction, depth, mask, settings)
    predicted = (coarse.double() + correction.double()).numpy()[0]
    expected = by_hand(predicted, depth[0].double().numpy(), mask[0].numpy())
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-3), name
    total = 2 * expected["relief"] + 0.5 * expected["contour"] + 0.1 * expected["offset"]
    assert float(found["loss"]) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("width", [1, 1944, 9_000, 10**6])
def test_strides_of_images_of_any_width_fit_into_the_crop(width):
    depth, mask = scene()
    off = losses(logarithm(depth + torch.randn(depth.shape)), depth, mask, width=width)
    assert all(bool((value > 0).all()) for value in off.values())


def test_a_negative_weight_is_one_line():
    assert ReliefWeights(contour=-1.0).problems() == ["--contour is -1.0: expected >= 0"]
