"""Every registered loss: equal to plain float64 loops over pixels, and what all of them promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.losses import BOUNDS, LOOPS, SETTINGS, images, loops, value

from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import LOSSES, compute_losses

VARIED = [
    LossSettings(tau_mm=200.0),
    LossSettings(gamma=0.0, scales=1, silog_lambda=0.0),
    LossSettings(gamma=3.0, tau=0.0, tau_mm=0.0, trusted_radius=0, scales=2, silog_lambda=0.85),
    LossSettings(tau=0.05, tau_mm=300.0, trusted_radius=1, scales=6, silog_lambda=1.0),
]
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize("valid", [1.0, 0.9, 0.7, 0.15])
@pytest.mark.parametrize("settings", VARIED)
def test_equals_a_float64_loop_over_pixels(name, valid, settings):
    given = images(round(100 * valid), valid=valid)
    found = compute_losses(replace(settings, loss=name), *given, BOUNDS)[name]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(loops(name, *given, settings), rel=1e-5)


def test_the_recipes_loss_is_the_formula_of_its_document_at_size():
    """In float64, whole arrays: (d^ - d) masked, steps of d^ and of d apart, eps = 1e-6, per image,
    then the mean over images."""
    rng = np.random.default_rng(5)
    d = np.repeat(np.repeat(rng.uniform(0.05, 0.25, (2, 20, 30)), 12, 1), 12, 2) + rng.normal(
        0, 1e-3, (2, 240, 360)
    )
    p = d + rng.normal(0, 0.02, d.shape)
    m = np.repeat(np.repeat(rng.random((2, 40, 60)) < 0.7, 6, 1), 6, 2)
    d = d.astype(np.float32).astype(float)
    p = p.astype(np.float32).astype(float)
    wanted = []
    for d_, p_, m_ in zip(d, p, m):
        total = (m_ * abs(p_ - d_)).sum() / (m_.sum() + 1e-6)
        for a, b, c in ((d_, p_, m_), (d_.T, p_.T, m_.T)):
            both = c[:, 1:] & c[:, :-1]
            step = a[:, 1:] - a[:, :-1]
            total += (
                3.0
                * (abs(b[:, 1:] - b[:, :-1] - step) * (1 + 10 * (abs(step) > 0.02)) * both).sum()
                / (both.sum() + 1e-6)
            )
        wanted.append(total)
    found = compute_losses(SETTINGS, *(torch.from_numpy(a) for a in (p, d, m)), BOUNDS)["loss"]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_hand_worked_2_by_2_image():
    """target 0.1 0.2 / 0.1 -, pred 0.1 0.3 / 0.15 9: l1 0.15/3.

    X: |0.2 - 0.1| x 11 (an edge), y: |0.05 - 0| x 1.
    """
    target = torch.tensor([[[0.1, 0.2], [0.1, 7.0]]])
    pred = torch.tensor([[[0.1, 0.3], [0.15, 9.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    parts = compute_losses(SETTINGS, pred, target, mask, BOUNDS)
    assert parts["l1"].item() == pytest.approx(0.05, rel=1e-5)
    assert parts["grad"].item() == pytest.approx(0.1 * 11 + 0.05, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(0.05 + 3 * 1.15, rel=1e-5)


@every_loss
def test_a_perfect_prediction_is_0_and_pulls_nowhere(name):
    _, target, mask = images()
    pred = target.clone().requires_grad_()
    found = value(name, pred, target, mask)
    found.sum().backward()
    assert found.tolist() == [0.0] * 3
    assert (pred.grad == 0).all()


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
        dirty_pred = torch.where(
            mask | (torch.tensor(where == "target")), pred, junk
        ).requires_grad_()
        dirty_target = torch.where(mask | (torch.tensor(where == "pred")), target, junk)
        dirty = value(name, dirty_pred, dirty_target, mask)
        assert torch.equal(dirty, clean)
        dirty.sum().backward()
        assert torch.isfinite(dirty_pred.grad).all()
        assert (dirty_pred.grad[~mask] == 0).all()
        assert torch.equal(dirty_pred.grad, clean_pred.grad)


@every_loss
@pytest.mark.parametrize("junk", [math.nan, 1.0])
def test_an_empty_mask_gives_0_and_no_gradient(name, junk):
    pred = torch.full((2, 4, 5), 0.3, requires_grad=True)
    loss = value(name, pred, torch.full((2, 4, 5), junk), torch.zeros(2, 4, 5, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert (pred.grad == 0).all()


@every_loss
def test_a_lone_valid_pixel_has_its_own_error_and_no_neighbor(name):
    pred, target, _ = images(shape=(1, 4, 5))
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 1, 2] = True
    pred.requires_grad_()
    found = value(name, pred, target, mask)
    found.sum().backward()
    assert found.tolist() == pytest.approx(loops(name, pred, target, mask), rel=1e-5, abs=0)
    assert (found.item() == 0) == (name not in ("l1", "silog"))
    assert torch.isfinite(pred.grad).all()
    assert (pred.grad[mask].item() != 0) == (found.item() != 0)
    assert (pred.grad[~mask] == 0).all()


@every_loss
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_a_valid_pixel_that_is_not_finite_is_never_overlooked(name, junk):
    pred, target, mask = images()
    pred[mask] = torch.where(torch.arange(int(mask.sum())) % 7 == 0, junk, pred[mask])
    assert not torch.isfinite(value(name, pred, target, mask)).any()


@every_loss
def test_what_half_precision_emits_stays_finite_and_right(name):
    """Below 0 (bicubic overshoot), exactly 0 (a ReLU), far above 1 (the untrained model), and the
    largest there is."""
    _, target, mask = images()
    emitted = torch.tensor([-0.75, -0.01, 0.0, 6e-8, 0.2, 1.0, 1.5, 10.0], dtype=torch.float16)
    pred = emitted[
        torch.from_numpy(np.random.default_rng(3).integers(0, 8, mask.shape))
    ].requires_grad_()
    found = value(name, pred, target, mask)
    found.sum().backward()
    assert torch.isfinite(pred.grad).all()
    assert found.tolist() == pytest.approx(loops(name, pred, target, mask), rel=1e-5)
    for extreme in (65504.0, -65504.0):
        pred = torch.where(pred.detach() == 1.5, extreme, pred.detach()).requires_grad_()
        found = value(name, pred, target, mask)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert torch.isfinite(pred.grad).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_at_full_size_stay_finite_and_right(name, dtype):
    rows = torch.arange(756, dtype=torch.float64)[:, None] % 4 / 8
    target = (rows + torch.zeros(756, 1260))[None]  # steps of 1/8: exact in half precision
    pred = target.square()
    mask = torch.ones(1, 756, 1260, dtype=torch.bool)
    assert torch.isinf(mask.half().sum()), "a half-precision sum of this mask is inf"
    half = pred.to(dtype).requires_grad_()
    found = value(name, half, target.to(dtype), mask)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert torch.equal(found, value(name, pred, target, mask))
    assert found.item() > 0.05
    assert torch.isfinite(half.grad).all()


@every_loss
def test_the_gradient_equals_finite_differences(name):
    pred, target, mask = images(4, (1, 4, 5))
    pred[0, mask[0]] = torch.where(torch.arange(int(mask.sum())) == 3, -0.1, pred[0, mask[0]])
    pred.requires_grad_()
    value(name, pred, target, mask).sum().backward()
    p = pred[0].detach().double().numpy()
    d = target[0].double().numpy()
    m = mask[0].numpy()
    h = 1e-7
    expected = np.zeros_like(p)
    for place in np.ndindex(p.shape):
        up = p.copy()
        down = p.copy()
        up[place] += h
        down[place] -= h
        expected[place] = (LOOPS[name](up, d, m, SETTINGS) - LOOPS[name](down, d, m, SETTINGS)) / (
            2 * h
        )
    assert np.abs(pred.grad[0].numpy() - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


@every_loss
def test_each_image_has_its_own_value_so_a_batch_equals_a_loop(name):
    pred, target, mask = images(shape=(4, 8, 9))
    mask[1] = False
    mask[2, :, 4:] = False  # images with very different counts
    given = [pred.requires_grad_(), target, mask]
    upstream = torch.tensor([1.0, 2.0, 0.0, 0.5])  # the last of a batch may weigh 0
    whole = value(name, *given)
    (pull,) = torch.autograd.grad(whole, pred, upstream)
    alone = torch.cat([value(name, *(t[i : i + 1] for t in given)) for i in range(4)])
    (pull_alone,) = torch.autograd.grad(alone, pred, upstream)
    assert whole.shape == (4,)
    assert torch.allclose(whole, alone, rtol=1e-6, atol=0)
    assert torch.allclose(pull, pull_alone, rtol=1e-5, atol=1e-8)


@every_loss
def test_inputs_are_left_as_they_were(name):
    given = images()
    copies = [t.clone() for t in given]
    value(name, *given)
    assert all(map(torch.equal, given, copies))


@every_loss
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 5), (2, 5, 1)])
def test_images_one_pixel_wide_or_high_work(name, shape):
    pred, target, mask = images(shape=shape, valid=1.0)
    assert value(name, pred, target, mask).tolist() == pytest.approx(
        loops(name, pred, target, mask), rel=1e-5
    )


@every_loss
def test_every_loss_says_what_it_is(name):
    assert LOSSES[name].__doc__
    assert name in LOOPS, "write its loop in helpers/losses.py"
