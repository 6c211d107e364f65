"""What each loss is there for: edges, grooves, holes, scales and relative depth."""

import math

import numpy as np
import pytest
import torch
from helpers.losses import BOUNDS, LO, SPAN, images, loops, value

from depthdist.geometry.depth_range import normalize_depth
from depthdist.losses.terms import to_relative_depth


def test_an_edge_counts_1_plus_gamma_only_above_tau():
    target = torch.tensor([[[0.0, 0.5, 0.625, 0.625]]])
    pred = target + torch.tensor([[[0.0, 0.25, 0.5, 0.75]]])
    mask = torch.ones(1, 1, 4, dtype=torch.bool)
    weights = [
        sum(1 + gamma * (step > tau) for step in (0.5, 0.125, 0.0))
        for gamma, tau in ((10, 0.125), (10, 0.1), (0, 0.0), (4, 0.0))
    ]
    found = [
        value("grad", pred, target, mask, gamma=gamma, tau=tau).item()
        for gamma, tau in ((10, 0.125), (10, 0.1), (0, 0.0), (4, 0.0))
    ]
    assert found == pytest.approx([0.25 * w / 3 for w in weights], rel=1e-5), (
        "a step of exactly tau is no edge"
    )


def groove(depth_mm, deep_mm=8.0, shape=(12, 24)):
    """target and mask of a plane at depth_mm with a groove over columns 8 to 15, and a prediction
    without the groove."""
    plane = torch.full((1, *shape), depth_mm)
    cut = plane.clone()
    cut[..., 8:16] += deep_mm
    target, mask = normalize_depth(cut, BOUNDS)
    return normalize_depth(plane, BOUNDS)[0], target, mask


def extra(name, pred, target, mask, **settings):
    """How many times as much the image weighs as without edge weights."""
    return (
        value(name, pred, target, mask, **settings) / value(name, pred, target, mask, gamma=0.0)
    ).item()


@pytest.mark.parametrize("depth_mm", [700.0, 1500.0, 3000.0])
def test_a_groove_of_8_mm_is_an_edge_in_mm_at_every_distance_and_none_on_the_normalized_scale(
    depth_mm,
):
    given = groove(depth_mm)
    assert extra("grad", *given) == 1.0
    assert extra("grad_mm", *given) == extra("grad_trusted", *given) == pytest.approx(11.0)
    assert extra("grad_mm", *groove(depth_mm, 3.0)) == 1.0
    assert extra("grad_mm", *groove(depth_mm, 3.0), tau_mm=2.0) == pytest.approx(11.0)


@pytest.mark.parametrize(
    ("radius", "gap", "weight"), [(2, 1, 6.0), (2, 2, 11.0), (3, 2, 6.0), (0, 0, 11.0), (1, 0, 6.0)]
)
def test_a_rim_of_a_groove_within_the_radius_of_a_hole_is_no_trusted_edge(radius, gap, weight):
    """Columns up to 6 - gap were not measured.

    The left rim, between 7 and 8, may be near that hole; the right one is not.
    """
    pred, target, mask = groove(1500.0)
    mask[..., : 7 - gap] = False
    assert extra("grad_trusted", pred, target, mask, trusted_radius=radius) == pytest.approx(weight)
    assert extra("grad_mm", pred, target, mask) == pytest.approx(11.0)


def test_a_hole_of_one_pixel_takes_trust_from_its_square_and_no_more():
    """A ramp of 10 mm a column: every pair across is an edge.

    Around a hole of one pixel, 3 rows of 4 pairs lose it with radius 1.
    """
    target, mask = normalize_depth((1000.0 + 10.0 * torch.arange(10.0)).repeat(1, 6, 1), BOUNDS)
    pred = target + 0.001 * torch.arange(10.0)
    mask[0, 2, 5] = False
    pairs = 6 * 9 - 2
    trusted = 6 * 9 - 3 * 4  # rows 1 to 3 lose the pairs that touch columns 4 to 6
    assert extra("grad_trusted", pred, target, mask, trusted_radius=1) == pytest.approx(
        1 + 10 * trusted / pairs, rel=1e-4
    )


def test_a_tilted_prediction_weighs_twice_as_much_at_each_scale():
    target = torch.full((1, 33, 33), 0.25)
    pred = target + torch.arange(33) / 256
    mask = torch.ones(1, 33, 33, dtype=torch.bool)
    found = [
        value("multiscale", pred, target, mask, scales=k).item() * 256
        for k in (1, 2, 3, 4, 5, 6, 16)
    ]
    assert found == pytest.approx([1, 3, 7, 15, 31, 63, 63]), "33 pixels hold steps of 1 to 32"


@pytest.mark.parametrize("seed", range(3))
def test_one_scale_is_the_gradient_loss_without_edges(seed):
    given = images(seed)
    assert torch.equal(value("multiscale", *given, scales=1), value("grad", *given, gamma=0.0))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.85, 1.0])
def test_silog_forgives_its_share_of_a_wrong_scale(share):
    depth_mm = torch.linspace(400.0, 1500.0, 80).reshape(1, 8, 10)
    target, mask = normalize_depth(depth_mm, BOUNDS)
    pred, _ = normalize_depth(2 * depth_mm, BOUNDS)
    assert value("silog", pred, target, mask, silog_lambda=share).item() == pytest.approx(
        math.log(2) * math.sqrt(1 - share), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("name", ["l1", "grad", "multiscale"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.7), (30.0, 0.0), (0.01, -0.02)])
def test_relative_depth_is_asked_for_whatever_the_truths_scale_and_shift(name, scale, shift):
    pred, target, mask = images(2)
    plain, moved = (
        value(name, pred, truth, mask, relative=True, gamma=0.0)
        for truth in (target, scale * target + shift)
    )
    assert moved.tolist() == pytest.approx(plain.tolist(), rel=1e-3)
    assert not torch.allclose(
        value(name, 2 * pred, target, mask, relative=True, gamma=0.0), plain, rtol=1e-2
    ), "nothing would hold the prediction's scale"


@pytest.mark.parametrize("valid", [1.0, 0.7, 0.15])
def test_the_relative_range_is_numpys_percentiles(valid):
    _, target, mask = images(6, (3, 30, 40), valid)
    found = to_relative_depth(target, mask)
    for moved, truth, seen in zip(found.numpy(), target.double().numpy(), mask.numpy()):
        low, high = np.percentile(truth[seen], [2, 98])
        assert moved[seen] == pytest.approx(1 + 8 * (truth[seen] - low) / (high - low), abs=1e-4)
        assert (moved[~seen] == 0).all()


def test_a_flat_a_lone_and_an_unseen_image_have_a_relative_truth_too():
    target = torch.full((3, 4, 5), 0.3)
    mask = torch.ones(3, 4, 5, dtype=torch.bool)
    mask[1], mask[2] = False, False
    mask[1, 2, 2] = True
    assert torch.equal(to_relative_depth(target, mask), mask.float())


def test_silog_pulls_as_much_close_to_perfect_as_farther_off():
    """It is of degree 1 in a small error, however steep the root is there: 0.15 um at 1.5 m pulls
    as 0.15 mm does."""
    _, target, mask = groove(1500.0)
    sides = torch.where(torch.arange(24) % 3 == 0, 1.0, -1.0)
    pulls = []
    for error in (1e-4, 1e-7):
        pred = (target + error * sides).requires_grad_()
        found = value("silog", pred, target, mask)
        found.sum().backward()
        assert found.tolist() == pytest.approx(loops("silog", pred, target, mask), rel=1e-4)
        pulls.append(pred.grad)
    assert pulls[0].abs().min() > 1e-3
    assert torch.allclose(*pulls, rtol=0.1)


def test_silog_pulls_on_predictions_beyond_the_far_bound_as_much_as_at_it():
    target = torch.full((1, 1, 1), 0.2)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    pulls = []
    for start in (1e-7, 0.0, -1e-7, -0.5):
        pred = torch.full((1, 1, 1), start, requires_grad=True)
        value("silog", pred, target, mask).sum().backward()
        pulls.append(pred.grad.item())
    assert pulls == pytest.approx([-math.sqrt(0.5) * SPAN / LO] * 4, rel=1e-5)
