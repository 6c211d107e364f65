"""Every registered loss: against plain float64 loops over pixels, and what all of them promise."""

import math

import numpy as np
import pytest
import torch

from depthdist.losses import LOSSES, LossSettings, compute

SETTINGS = LossSettings()
EPS = 1e-6


def loop_l1(pred, target, mask, gamma, tau):
    total = count = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                total, count = total + abs(pred[y, x] - target[y, x]), count + 1
    return total / (count + EPS)


def loop_grad(pred, target, mask, gamma, tau):
    value = 0.0
    for dy, dx in ((0, 1), (1, 0)):
        total = count = 0.0
        for y in range(mask.shape[0] - dy):
            for x in range(mask.shape[1] - dx):
                if mask[y, x] and mask[y + dy, x + dx]:
                    d_pred, d_target = pred[y + dy, x + dx] - pred[y, x], target[y + dy, x + dx] - target[y, x]
                    total, count = total + abs(d_pred - d_target) * (1 + gamma * (abs(d_target) > tau)), count + 1
        value += total / (count + EPS)
    return value


# SPEC's formulas, one pixel at a time. A new loss is tested once its loop stands here.
LOOPS = {"l1": loop_l1, "grad": loop_grad}
every_loss = pytest.mark.parametrize("name", LOSSES)


def images(seed=0, shape=(3, 9, 11), valid=0.7):
    """pred, target float32 and mask, with steps in the target on both sides of tau."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.1, 0.2, shape)
    pred = target + rng.normal(0, 0.05, shape)
    return torch.from_numpy(pred).float(), torch.from_numpy(target).float(), torch.from_numpy(rng.random(shape) < valid)


def value(name, pred, target, mask, **settings):
    return compute(LossSettings(loss=name, **settings), pred, target, mask)[name]


@every_loss
def test_equals_a_float64_loop_over_pixels(name):
    for seed, valid, gamma, tau in ((0, 0.7, 10.0, 0.02), (1, 1.0, 0.0, 0.02), (2, 0.15, 3.0, 0.0)):
        pred, target, mask = images(seed, valid=valid)
        found = value(name, pred, target, mask, gamma=gamma, tau=tau)
        expected = [LOOPS[name](*(t.double().numpy() for t in (p, d)), m.numpy(), gamma, tau) for p, d, m in zip(pred, target, mask)]
        assert found.dtype == torch.float32 and found.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_hand_worked_2_by_2_image():
    """target 0.1 0.2 / 0.1 -, pred 0.1 0.3 / 0.15 9: l1 0.15/3; x: |0.2 - 0.1| x 11 (an edge), y: |0.05 - 0| x 1."""
    target, pred = torch.tensor([[[0.1, 0.2], [0.1, 7.0]]]), torch.tensor([[[0.1, 0.3], [0.15, 9.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    parts = compute(SETTINGS, pred, target, mask)
    assert parts["l1"].item() == pytest.approx(0.05, rel=1e-5)
    assert parts["grad"].item() == pytest.approx(0.1 * 11 + 0.05, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(0.05 + 3 * 1.15, rel=1e-5)


@every_loss
def test_a_perfect_prediction_is_0(name):
    _, target, mask = images()
    assert value(name, target.clone(), target, mask).tolist() == [0.0] * 3


@every_loss
def test_any_other_prediction_is_above_0(name):
    pred, target, mask = images()
    assert (value(name, pred, target, mask) > 0).all()


@every_loss
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30, 0.0])
def test_masked_pixels_do_not_count(name, junk):
    pred, target, mask = images()
    clean_pred = pred.clone().requires_grad_()
    clean = value(name, clean_pred, target, mask)
    clean.sum().backward()
    for where in ("pred", "target", "both"):
        dirty_pred = torch.where(mask | (torch.tensor(where == "target")), pred, junk).requires_grad_()
        dirty_target = torch.where(mask | (torch.tensor(where == "pred")), target, junk)
        dirty = value(name, dirty_pred, dirty_target, mask)
        assert torch.equal(dirty, clean)
        dirty.sum().backward()
        assert torch.isfinite(dirty_pred.grad).all() and (dirty_pred.grad[~mask] == 0).all()
        assert torch.equal(dirty_pred.grad, clean_pred.grad)


@every_loss
@pytest.mark.parametrize("junk", [math.nan, 1.0])
def test_an_empty_mask_gives_0_and_no_gradient(name, junk):
    pred = torch.full((2, 4, 5), 0.3, requires_grad=True)
    loss = value(name, pred, torch.full((2, 4, 5), junk), torch.zeros(2, 4, 5, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0] and (pred.grad == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_at_full_size_stay_finite_and_right(name, dtype):
    rows = torch.arange(756, dtype=torch.float64)[:, None] % 4 / 8
    target = (rows + torch.zeros(756, 1260))[None]  # steps of 1/8: exact in half precision
    pred, mask = target * 0.5, torch.ones(1, 756, 1260, dtype=torch.bool)
    assert torch.isinf(mask.half().sum()), "a half-precision sum of this mask is inf"
    half = pred.to(dtype).requires_grad_()
    found = value(name, half, target.to(dtype), mask)
    found.sum().backward()
    assert found.dtype == torch.float32 and torch.equal(found, value(name, pred, target, mask)) and found.item() > 0.05
    assert torch.isfinite(half.grad).all()


@every_loss
def test_the_gradient_equals_finite_differences(name):
    pred, target, mask = images(4, (1, 4, 5))
    pred.requires_grad_()
    value(name, pred, target, mask).sum().backward()
    p, d, m = pred[0].detach().double().numpy(), target[0].double().numpy(), mask[0].numpy()
    h, expected = 1e-7, np.zeros_like(p)
    for place in np.ndindex(p.shape):
        up, down = p.copy(), p.copy()
        up[place] += h
        down[place] -= h
        expected[place] = (LOOPS[name](up, d, m, 10.0, 0.02) - LOOPS[name](down, d, m, 10.0, 0.02)) / (2 * h)
    assert pred.grad[0].tolist() == [pytest.approx(row.tolist(), abs=1e-5) for row in expected]


@every_loss
def test_each_image_has_its_own_value_so_a_batch_equals_a_loop(name):
    pred, target, mask = images(shape=(4, 8, 9))
    mask[1] = False
    mask[2, :, 4:] = False  # images with very different counts
    whole = value(name, pred, target, mask)
    alone = torch.cat([value(name, pred[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(4)])
    assert whole.shape == (4,) and torch.allclose(whole, alone, rtol=1e-6, atol=0)


@every_loss
def test_inputs_are_left_as_they_were(name):
    given = images()
    copies = [t.clone() for t in given]
    value(name, *given)
    assert all(map(torch.equal, given, copies))


@every_loss
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (2, 5, 1)])
def test_pictures_one_pixel_wide_or_high_work(name, shape):
    pred, target, mask = images(shape=shape, valid=1.0)
    expected = [LOOPS[name](p.double().numpy(), d.double().numpy(), m.numpy(), 10.0, 0.02) for p, d, m in zip(pred, target, mask)]
    assert value(name, pred, target, mask).tolist() == pytest.approx(expected, rel=1e-5)


@every_loss
def test_every_loss_says_what_it_is(name):
    assert LOSSES[name].__doc__ and name in LOOPS, "write its loop above"


def test_an_edge_counts_1_plus_gamma_only_above_tau():
    target = torch.tensor([[[0.0, 0.5, 0.625, 0.625]]])
    pred, mask = target + torch.tensor([[[0.0, 0.25, 0.5, 0.75]]]), torch.ones(1, 1, 4, dtype=torch.bool)
    weights = [sum(1 + gamma * (step > tau) for step in (0.5, 0.125, 0.0)) for gamma, tau in ((10, 0.125), (10, 0.1), (0, 0.0), (4, 0.0))]
    found = [value("grad", pred, target, mask, gamma=gamma, tau=tau).item() for gamma, tau in ((10, 0.125), (10, 0.1), (0, 0.0), (4, 0.0))]
    assert found == pytest.approx([0.25 * w / 3 for w in weights], rel=1e-5), "a step of exactly tau is no edge"


# ------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("spec", "weights"),
    [("l1=1,grad=3", {"l1": 1, "grad": 3}), ("l1", {"l1": 1}), (" grad = 0.5 , l1=2", {"grad": 0.5, "l1": 2}), ("l1=0,grad=1", {"l1": 0, "grad": 1})],
)
def test_the_loss_is_the_weighted_sum_of_the_named(spec, weights):
    settings, given = LossSettings(loss=spec), images()
    assert settings.problems() == [] and settings.weights() == weights
    parts = compute(settings, *given)
    assert set(parts) == {*weights, "loss"}
    expected = sum(w * value(name, *given).double() for name, w in weights.items())
    assert parts["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_default_is_the_recipes_loss():
    assert SETTINGS.weights() == {"l1": 1.0, "grad": 3.0} and (SETTINGS.gamma, SETTINGS.tau) == (10.0, 0.02) and not SETTINGS.problems()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "l2"}, "'l2' is not a loss; there are l1, grad"),
        ({"loss": ""}, "is not a loss"),
        ({"loss": "l1,,grad"}, "is not a loss"),
        ({"loss": "l1=x"}, "expected a number"),
        ({"loss": "l1=-1,grad=3"}, ">= 0"),
        ({"loss": "l1=0"}, "one above 0"),
        ({"gamma": -1.0}, "--gamma is -1.0"),
        ({"gamma": math.nan}, "--gamma is nan"),
        ({"tau": -0.1}, "--tau is -0.1"),
        ({"loss": "l1=nan"}, "l1=nan"),
        ({"loss": "l1=inf"}, "l1=inf"),
        ({"gamma": math.inf}, "--gamma is inf"),
        ({"loss": "l1=1,l1=2"}, "l1"),
    ],
)
def test_settings_that_cannot_work_are_one_line_each(settings, said):
    (line,) = LossSettings(**settings).problems()
    assert said in line


def test_all_that_is_wrong_is_listed():
    assert len(LossSettings(loss="l1=-1", gamma=-1.0, tau=-1.0).problems()) == 3
