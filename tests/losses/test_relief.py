"""The loss of the detail stage: relief in mm, blind to where the coarse depth lies."""

import numpy as np
import pytest
import torch

from depthdist.losses.relief import ReliefWeights, relief_losses

# half of the full one: relief over 2 and 5 pixels, smooth over 1 and 2; contours: 16, or what fits
WIDTH = 972
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


def losses(log_depth, depth_mm, mask, settings=ONES, width=WIDTH, coarse_log=None):
    """The losses; without a coarse depth of its own, the refined one is the coarse one."""
    coarse_log = log_depth if coarse_log is None else coarse_log
    return relief_losses(settings, log_depth, coarse_log, depth_mm, mask, width)


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
    assert float(off["smooth"].min()) > 1
    flat = depth.clone()
    flat[:, :, 8:14] -= 6  # the groove is missed
    missed = losses(logarithm(flat), depth, mask)
    assert float(missed["relief"].min()) > 0.5


def test_a_contour_is_best_where_it_is_and_a_smeared_one_is_no_better_than_none():
    depth, mask = torch.full((1, 24, 30), 1500.0), torch.ones(1, 24, 30, dtype=torch.bool)
    depth[:, :, 15:] += 120
    none, smeared = torch.full_like(depth, 1560.0), depth.clone()
    smeared[:, :, 11:19] = torch.linspace(1500, 1620, 8)
    steps = {name: losses(logarithm(z), depth, mask) for name, z in
             {"sharp": depth + 30, "smeared": smeared, "none": none}.items()}  # fmt: skip
    found = {name: float(of["contour"]) for name, of in steps.items()}
    share = 11 / (30 - 11) / 2  # of the pairs 11 pixels apart along a row; none along a column
    assert found["sharp"] < 1 and found["none"] == pytest.approx(120 * share, rel=0.05)
    assert 0.1 * found["none"] < found["smeared"] < 0.9 * found["none"]
    # over few pixels the step itself would ask for none: it does not count
    assert float(steps["none"]["smooth"]) < 0.1 < float(steps["smeared"]["smooth"])


def test_the_level_of_a_crop_is_held_at_that_of_the_coarse_depth():
    depth, mask = scene()
    mask[:, :4] = False
    coarse = logarithm(depth) + 0.1  # far off: what a crop cannot know
    assert not losses(coarse, depth, mask, coarse_log=coarse)["level"].any()
    both = coarse.clone()
    both[:, :, 15:] += 5 / depth[:, :, 15:].clamp(min=1)
    both[:, :4] = 99.0  # where nothing was measured
    expected = 5 * mask[:, :, 15:].sum((1, 2)) / mask.sum((1, 2))
    found = losses(both, depth, mask, coarse_log=coarse)["level"]
    assert torch.allclose(found, expected, rtol=1e-3)


def test_what_is_in_holes_does_not_count():
    depth, mask = scene()
    coarse = logarithm(depth + 9)
    log_depth = logarithm(depth + 3 * torch.rand(depth.shape, generator=torch.manual_seed(0)))
    expected = losses(log_depth, depth, mask, coarse_log=coarse)
    hidden, unmeasured = (torch.where(mask, one, 9.0) for one in (log_depth, coarse))
    measured = torch.where(mask, depth, 77.0)
    found = losses(hidden, measured, mask, coarse_log=unmeasured)
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


def by_hand(predicted_log, coarse_log, depth, mask):
    """The terms of one crop, as the module's docstring has them, in float64 and pixel by pixel."""
    depth = np.where(mask, depth, 1.0)
    error = (predicted_log - np.log(depth)) * depth
    terms = {"relief": [], "smooth": [], "contour": []}

    def along(axis):
        for line in range(depth.shape[1 - axis]):
            yield tuple(np.take(array, line, axis=1 - axis) for array in (error, depth, mask))

    def of_pairs(axis, k, take):
        found = []
        for e, z, m in along(axis):
            for i in range(len(e) - k):
                if m[i] and m[i + k]:
                    found.append(take(abs(z[i + k] - z[i]), abs(e[i + k] - e[i])))
        return np.mean(found)

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
            smooth = of_pairs(axis, k, lambda step, off: off if step < 25 else 0)
            terms["smooth"].append(smooth)
        contour = of_pairs(
            axis, (min(depth.shape) - 1) // 2, lambda step, off: off if step >= 60 else 0
        )
        terms["contour"].append(contour)
    means = {name: np.mean(found) for name, found in terms.items()}
    return {**means, "level": abs(((predicted_log - coarse_log) * depth)[mask].mean())}


def test_it_is_what_the_formulas_give_in_float64():
    depth, mask = scene(1, (1, 17, 21))
    depth[:, :, 12:] += torch.where(mask[:, :, 12:], 200, 0)  # a contour down, too
    generator = torch.manual_seed(1)
    coarse = logarithm(depth + 4 * torch.randn(depth.shape, generator=generator))
    correction = 0.002 * torch.randn(depth.shape, generator=generator)
    settings = ReliefWeights(relief=2.0, smooth=0.5, contour=0.3, level=0.7)
    found = losses(coarse + correction, depth, mask, settings, coarse_log=coarse)
    arrays = (array.double().numpy()[0] for array in (coarse + correction, coarse, depth))
    expected = by_hand(*arrays, mask[0].numpy())
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-3), name
    total = sum(getattr(settings, name) * value for name, value in expected.items())
    assert float(found["loss"]) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("width", [1, 1944, 9_000, 10**6])
def test_strides_of_images_of_any_width_fit_into_the_crop(width):
    depth, mask = scene()
    coarse = logarithm(depth)
    off = losses(coarse + 0.01 * torch.rand(depth.shape), depth, mask, ONES, width, coarse)
    assert all(bool((value > 0).all()) for name, value in off.items() if name != "contour")
    assert off["contour"].isfinite().all()


def test_a_negative_weight_is_one_line():
    assert ReliefWeights(contour=-1.0).problems() == ["--contour is -1.0: expected >= 0"]
