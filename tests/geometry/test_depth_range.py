"""Depth in mm and its normalized inverse: hand-worked values, round trips, invalid pixels."""

import math

import numpy as np
import pytest
import torch

from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
from depthdist.geometry.resampling import upsample

BOUNDS = DepthRange(251.74, 3907.45)  # of the real data


def mm(*values, dtype=torch.float32):
    return torch.tensor([values], dtype=dtype)


def test_the_round_trip_is_exact_to_a_hundredth_of_a_millimetre():
    bounds = DepthRange(250.0, 3910.0)
    depth_mm = torch.linspace(250, 3910, 1_000_001, dtype=torch.float64).float()
    target, mask = normalize_depth(depth_mm, bounds)
    back = denormalize_depth(target, bounds)
    assert mask.all()
    assert target.dtype == back.dtype == torch.float32
    assert (back.double() - depth_mm.double()).abs().max() < 0.01


def test_hand_worked_values():
    bounds = DepthRange(500.0, 2000.0)  # inverse 0.002 .. 0.0005
    target, mask = normalize_depth(mm(500.0, 2000.0, 800.0, 1000.0), bounds)
    assert mask.all()
    assert target[0].tolist() == pytest.approx([1.0, 0.0, 0.5, 1 / 3], abs=1e-6)
    assert denormalize_depth(mm(1.0, 0.0, 0.5, 0.2), bounds)[0].tolist() == pytest.approx(
        [500.0, 2000.0, 800.0, 1250.0], rel=1e-6
    )


def test_the_target_equals_float64_numpy():
    rng = np.random.default_rng(0)
    z = rng.uniform(BOUNDS.near_mm, BOUNDS.far_mm, (3, 40, 50))
    lo, hi = 1 / BOUNDS.far_mm, 1 / BOUNDS.near_mm
    expected = np.clip((1 / z - lo) / (hi - lo), 0, 1)
    target, _ = normalize_depth(torch.from_numpy(z).float(), BOUNDS)
    assert np.abs(target.double().numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 0.0, -0.0, -500.0, 251.0, 3908.0, 1e-30, 1e30]
)
def test_what_was_not_measured_or_is_out_of_bounds_is_masked_and_0(value):
    target, mask = normalize_depth(mm(value, 1500.0), BOUNDS)
    assert mask.tolist() == [[False, True]]
    assert target[0, 0] == 0
    assert torch.isfinite(target).all()


@pytest.mark.parametrize(
    "bounds",
    [
        BOUNDS,
        DepthRange(250.0, 3910.0),
        DepthRange(1 / 3 * 1000, 1e4 / 3),
        DepthRange(float(np.nextafter(np.float32(700), 0)), 900.1),
    ],
)
def test_the_pixels_that_set_the_bounds_are_inside_and_1_and_0(bounds):
    target, mask = normalize_depth(mm(bounds.near_mm, bounds.far_mm), bounds)
    assert mask.all()
    assert target[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert target.min() >= 0
    assert target.max() <= 1


def test_a_given_mask_takes_pixels_out_and_adds_none():
    depth_mm, given = mm(1000.0, 1000.0, math.nan), torch.tensor([[True, False, True]])
    target, mask = normalize_depth(depth_mm, BOUNDS, given)
    assert mask.tolist() == [[True, False, False]]
    assert target[0, 1] == 0
    assert given.tolist() == [[True, False, True]], "the caller's mask stays as it is"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_raised_to_float32(dtype):
    depth_mm = mm(400.0, 1024.0, 2048.0, dtype=dtype)  # these are whole in each of them
    target, _ = normalize_depth(depth_mm, BOUNDS)
    assert target.dtype == torch.float32
    assert torch.equal(target, normalize_depth(depth_mm.float(), BOUNDS)[0])
    coarse = mm(0.0, 0.125, 1.0, dtype=dtype)
    assert torch.equal(denormalize_depth(coarse, BOUNDS), denormalize_depth(coarse.float(), BOUNDS))
    assert (
        denormalize_depth(coarse, BOUNDS).dtype
        == upsample(coarse[None], (5, 5)).dtype
        == torch.float32
    )


def test_overshoot_below_0_is_the_far_bound_and_no_pole():
    lo, hi = 1 / BOUNDS.far_mm, 1 / BOUNDS.near_mm
    depth_mm = denormalize_depth(mm(-1e-6, -lo / (hi - lo), -0.5, -1e9), BOUNDS)
    assert depth_mm[0].tolist() == pytest.approx([BOUNDS.far_mm] * 4, rel=1e-6)


def test_values_above_1_are_nearer_than_the_near_bound():
    depth_mm = denormalize_depth(mm(1.0, 1.1, 5.0), BOUNDS)[0]
    assert depth_mm[0] == pytest.approx(BOUNDS.near_mm, rel=1e-6)
    assert depth_mm[0] > depth_mm[1] > depth_mm[2] > 0


def test_gradients_reach_the_prediction():
    target = mm(0.1, 0.5).requires_grad_()
    denormalize_depth(target, BOUNDS).sum().backward()
    assert (target.grad < 0).all(), "more inverse depth is nearer"


@pytest.mark.parametrize(
    "bounds", [(0, 1), (-1, 1), (2, 1), (1, 1), (1, math.inf), (math.nan, 1), (1, math.nan)]
)
def test_bounds_that_normalise_nothing_are_refused(bounds):
    with pytest.raises(ValueError, match="expected 0 < near < far"):
        DepthRange(*bounds).checked()
    assert BOUNDS.checked() is BOUNDS


def test_the_linear_scale_goes_there_and_back_and_is_1_at_the_near_bound():
    bounds = DepthRange(250.0, 3910.0, "linear")
    depth_mm = torch.linspace(250, 3910, 100_001, dtype=torch.float64).float()
    target, mask = normalize_depth(depth_mm, bounds)
    assert mask.all()
    assert (target[0], target[-1]) == (1, 0)
    assert (target.diff() <= 0).all()
    assert (target.double() - (3910 - depth_mm.double()) / 3660).abs().max() < 1e-6
    assert (denormalize_depth(target, bounds) - depth_mm).abs().max() < 0.01
    target, mask = normalize_depth(mm(math.nan, 100.0, 5000.0, 1000.0), bounds)
    assert mask.tolist() == [[False, False, False, True]]
    assert target[0, :3].tolist() == [0, 0, 0]
    assert denormalize_depth(mm(-0.1, 1.01, 5.0), bounds)[0].tolist() == pytest.approx(
        [3910, 250 - 36.6, 1.0]
    )
