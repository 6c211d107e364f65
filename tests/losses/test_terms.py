"""Every registered loss: against plain float64 loops over pixels, and what all of them promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import LOSSES, compute_losses, to_relative_depth

SETTINGS = LossSettings()
BOUNDS = DepthRange(251.74, 3907.45)
LO, SPAN = 1 / BOUNDS.far_mm, 1 / BOUNDS.near_mm - 1 / BOUNDS.far_mm
EPS = 1e-6


def loop_l1(pred, target, mask, settings):
    total = count = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                total, count = total + abs(pred[y, x] - target[y, x]), count + 1
    return total / (count + EPS)


def loop_steps(pred, target, mask, gamma, is_edge):
    """is_edge  of the pair (y, x), (y2, x2)"""
    value = 0.0
    for dy, dx in ((0, 1), (1, 0)):
        total = count = 0.0
        for y in range(mask.shape[0] - dy):
            for x in range(mask.shape[1] - dx):
                if mask[y, x] and mask[y + dy, x + dx]:
                    d_pred, d_target = (
                        pred[y + dy, x + dx] - pred[y, x],
                        target[y + dy, x + dx] - target[y, x],
                    )
                    total, count = (
                        total
                        + abs(d_pred - d_target) * (1 + gamma * is_edge(y, x, y + dy, x + dx)),
                        count + 1,
                    )
        value += total / (count + EPS)
    return value


def loop_grad(pred, target, mask, settings):
    return loop_steps(
        pred,
        target,
        mask,
        settings.gamma,
        lambda y, x, y2, x2: abs(target[y2, x2] - target[y, x]) > settings.tau,
    )


def far_apart(target, y, x, y2, x2, settings):
    return abs(1 / (LO + SPAN * target[y2, x2]) - 1 / (LO + SPAN * target[y, x])) > settings.tau_mm


def loop_grad_mm(pred, target, mask, settings):
    return loop_steps(
        pred, target, mask, settings.gamma, lambda *pair: far_apart(target, *pair, settings)
    )


def loop_grad_trusted(pred, target, mask, settings):
    def trusted(y, x):
        r = settings.trusted_radius
        return all(
            mask[v, u]
            for v in range(max(y - r, 0), min(y + r + 1, mask.shape[0]))
            for u in range(max(x - r, 0), min(x + r + 1, mask.shape[1]))
        )

    return loop_steps(
        pred,
        target,
        mask,
        settings.gamma,
        lambda y, x, y2, x2: (
            far_apart(target, y, x, y2, x2, settings) and trusted(y, x) and trusted(y2, x2)
        ),
    )


def loop_multiscale(pred, target, mask, settings):
    return sum(
        loop_steps(*(a[:: 2**k, :: 2**k] for a in (pred, target, mask)), 0.0, lambda *pair: False)
        for k in range(settings.scales)
    )


def loop_silog(pred, target, mask, settings):
    logs = []
    for p, d, seen in zip(pred.flat, target.flat, mask.flat):
        if seen:
            logs.append(
                (math.log(1 / (LO + SPAN * p)) if p >= 0 else math.log(1 / LO) - p * SPAN / LO)
                - math.log(1 / (LO + SPAN * d))
            )
    count = max(len(logs), 1)
    return math.sqrt(
        max(
            sum(g * g for g in logs) / count - settings.silog_lambda * (sum(logs) / count) ** 2, 0.0
        )
    )


# The formulas in float64, one pixel at a time. A new loss is tested once its loop stands here.
LOOPS = {
    "l1": loop_l1,
    "grad": loop_grad,
    "grad_mm": loop_grad_mm,
    "grad_trusted": loop_grad_trusted,
    "multiscale": loop_multiscale,
    "silog": loop_silog,
}
VARIED = [
    LossSettings(tau_mm=200.0),
    LossSettings(gamma=0.0, scales=1, silog_lambda=0.0),
    LossSettings(gamma=3.0, tau=0.0, tau_mm=0.0, trusted_radius=0, scales=2, silog_lambda=0.85),
    LossSettings(tau=0.05, tau_mm=300.0, trusted_radius=1, scales=6, silog_lambda=1.0),
]
every_loss = pytest.mark.parametrize("name", LOSSES)


def images(seed=0, shape=(3, 9, 11), valid=0.7):
    """pred, target float32 and mask, with steps in the target on both sides of tau and of 200 mm."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.1, 0.2, shape)
    pred = target + rng.normal(0, 0.05, shape)
    return (
        torch.from_numpy(pred).float(),
        torch.from_numpy(target).float(),
        torch.from_numpy(rng.random(shape) < valid),
    )


def value(name, pred, target, mask, **settings):
    return compute_losses(LossSettings(loss=name, **settings), pred, target, mask, BOUNDS)[name]


def loops(name, pred, target, mask, settings=SETTINGS):
    return [
        LOOPS[name](p, d, m, settings)
        for p, d, m in zip(pred.detach().double().numpy(), target.double().numpy(), mask.numpy())
    ]


@every_loss
@pytest.mark.parametrize("valid", [1.0, 0.9, 0.7, 0.15])
@pytest.mark.parametrize("settings", VARIED)
def test_equals_a_float64_loop_over_pixels(name, valid, settings):
    given = images(round(100 * valid), valid=valid)
    found = compute_losses(replace(settings, loss=name), *given, BOUNDS)[name]
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx(
        loops(name, *given, settings), rel=1e-5
    )


def test_the_recipes_loss_is_the_formula_of_its_document_at_size():
    """In float64, whole arrays: (d^ - d) masked, steps of d^ and of d apart, eps = 1e-6, per image,
    then the mean over images."""
    rng = np.random.default_rng(5)
    d = np.repeat(np.repeat(rng.uniform(0.05, 0.25, (2, 20, 30)), 12, 1), 12, 2) + rng.normal(
        0, 1e-3, (2, 240, 360)
    )
    p = d + rng.normal(0, 0.02, d.shape)
    m = np.repeat(np.repeat(rng.random((2, 40, 60)) < 0.7, 6, 1), 6, 2)
    d, p = d.astype(np.float32).astype(float), p.astype(np.float32).astype(float)
    wanted = []
    for d_, p_, m_ in zip(d, p, m):
        total = (m_ * abs(p_ - d_)).sum() / (m_.sum() + 1e-6)
        for a, b, c in ((d_, p_, m_), (d_.T, p_.T, m_.T)):
            both, step = c[:, 1:] & c[:, :-1], a[:, 1:] - a[:, :-1]
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
    target, pred = (
        torch.tensor([[[0.1, 0.2], [0.1, 7.0]]]),
        torch.tensor([[[0.1, 0.3], [0.15, 9.0]]]),
    )
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
    assert found.tolist() == [0.0] * 3 and (pred.grad == 0).all()


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
def test_a_lone_valid_pixel_has_its_own_error_and_no_neighbour(name):
    pred, target, _ = images(shape=(1, 4, 5))
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 1, 2] = True
    pred.requires_grad_()
    found = value(name, pred, target, mask)
    found.sum().backward()
    assert found.tolist() == pytest.approx(loops(name, pred, target, mask), rel=1e-5, abs=0)
    assert (found.item() == 0) == (name not in ("l1", "silog"))
    assert (
        torch.isfinite(pred.grad).all()
        and (pred.grad[mask].item() != 0) == (found.item() != 0)
        and (pred.grad[~mask] == 0).all()
    )


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
    assert torch.isfinite(pred.grad).all() and found.tolist() == pytest.approx(
        loops(name, pred, target, mask), rel=1e-5
    )
    for extreme in (65504.0, -65504.0):
        pred = torch.where(pred.detach() == 1.5, extreme, pred.detach()).requires_grad_()
        found = value(name, pred, target, mask)
        found.sum().backward()
        assert torch.isfinite(found).all() and torch.isfinite(pred.grad).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_at_full_size_stay_finite_and_right(name, dtype):
    rows = torch.arange(756, dtype=torch.float64)[:, None] % 4 / 8
    target = (rows + torch.zeros(756, 1260))[None]  # steps of 1/8: exact in half precision
    pred, mask = target.square(), torch.ones(1, 756, 1260, dtype=torch.bool)
    assert torch.isinf(mask.half().sum()), "a half-precision sum of this mask is inf"
    half = pred.to(dtype).requires_grad_()
    found = value(name, half, target.to(dtype), mask)
    found.sum().backward()
    assert (
        found.dtype == torch.float32
        and torch.equal(found, value(name, pred, target, mask))
        and found.item() > 0.05
    )
    assert torch.isfinite(half.grad).all()


@every_loss
def test_the_gradient_equals_finite_differences(name):
    pred, target, mask = images(4, (1, 4, 5))
    pred[0, mask[0]] = torch.where(torch.arange(int(mask.sum())) == 3, -0.1, pred[0, mask[0]])
    pred.requires_grad_()
    value(name, pred, target, mask).sum().backward()
    p, d, m = pred[0].detach().double().numpy(), target[0].double().numpy(), mask[0].numpy()
    h, expected = 1e-7, np.zeros_like(p)
    for place in np.ndindex(p.shape):
        up, down = p.copy(), p.copy()
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
    given, upstream = (
        [pred.requires_grad_(), target, mask],
        torch.tensor([1.0, 2.0, 0.0, 0.5]),
    )  # the last of a batch may weigh 0
    whole = value(name, *given)
    (pull,) = torch.autograd.grad(whole, pred, upstream)
    alone = torch.cat([value(name, *(t[i : i + 1] for t in given)) for i in range(4)])
    (pull_alone,) = torch.autograd.grad(alone, pred, upstream)
    assert (
        whole.shape == (4,)
        and torch.allclose(whole, alone, rtol=1e-6, atol=0)
        and torch.allclose(pull, pull_alone, rtol=1e-5, atol=1e-8)
    )


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
    assert value(name, pred, target, mask).tolist() == pytest.approx(
        loops(name, pred, target, mask), rel=1e-5
    )


@every_loss
def test_every_loss_says_what_it_is(name):
    assert LOSSES[name].__doc__ and name in LOOPS, "write its loop above"


def test_an_edge_counts_1_plus_gamma_only_above_tau():
    target = torch.tensor([[[0.0, 0.5, 0.625, 0.625]]])
    pred, mask = (
        target + torch.tensor([[[0.0, 0.25, 0.5, 0.75]]]),
        torch.ones(1, 1, 4, dtype=torch.bool),
    )
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


# ---------------------------------------------------------------------- what each loss is there for


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
def test_a_groove_of_8_mm_is_an_edge_in_mm_at_every_distance_and_none_on_the_normalised_scale(
    depth_mm,
):
    given = groove(depth_mm)
    assert extra("grad", *given) == 1.0
    assert extra("grad_mm", *given) == extra("grad_trusted", *given) == pytest.approx(11.0)
    assert extra("grad_mm", *groove(depth_mm, 3.0)) == 1.0 and extra(
        "grad_mm", *groove(depth_mm, 3.0), tau_mm=2.0
    ) == pytest.approx(11.0)


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
    pairs, trusted = (
        6 * 9 - 2,
        6 * 9 - 3 * 4,
    )  # rows 1 to 3 lose the pairs that touch columns 4 to 6
    assert extra("grad_trusted", pred, target, mask, trusted_radius=1) == pytest.approx(
        1 + 10 * trusted / pairs, rel=1e-4
    )


def test_a_tilted_prediction_weighs_twice_as_much_at_each_scale():
    target = torch.full((1, 33, 33), 0.25)
    pred, mask = target + torch.arange(33) / 256, torch.ones(1, 33, 33, dtype=torch.bool)
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
        assert (
            moved[seen] == pytest.approx(1 + 8 * (truth[seen] - low) / (high - low), abs=1e-4)
            and (moved[~seen] == 0).all()
        )


def test_a_flat_a_lone_and_an_unseen_picture_have_a_relative_truth_too():
    target, mask = torch.full((3, 4, 5), 0.3), torch.ones(3, 4, 5, dtype=torch.bool)
    mask[1], mask[2] = False, False
    mask[1, 2, 2] = True
    assert torch.equal(to_relative_depth(target, mask), mask.float())


def test_silog_pulls_as_much_close_to_perfect_as_farther_off():
    """It is of degree 1 in a small error, however steep the root is there: 0.15 um at 1.5 m pulls
    as 0.15 mm does."""
    _, target, mask = groove(1500.0)
    sides, pulls = torch.where(torch.arange(24) % 3 == 0, 1.0, -1.0), []
    for error in (1e-4, 1e-7):
        pred = (target + error * sides).requires_grad_()
        found = value("silog", pred, target, mask)
        found.sum().backward()
        assert found.tolist() == pytest.approx(loops("silog", pred, target, mask), rel=1e-4)
        pulls.append(pred.grad)
    assert pulls[0].abs().min() > 1e-3 and torch.allclose(*pulls, rtol=0.1)


def test_silog_pulls_on_predictions_beyond_the_far_bound_as_much_as_at_it():
    target, mask = torch.full((1, 1, 1), 0.2), torch.ones(1, 1, 1, dtype=torch.bool)
    pulls = []
    for start in (1e-7, 0.0, -1e-7, -0.5):
        pred = torch.full((1, 1, 1), start, requires_grad=True)
        value("silog", pred, target, mask).sum().backward()
        pulls.append(pred.grad.item())
    assert pulls == pytest.approx([-math.sqrt(0.5) * SPAN / LO] * 4, rel=1e-5)


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("l1=1,grad=3", {"l1": 1, "grad": 3}),
        ("l1", {"l1": 1}),
        (" grad = 0.5 , l1=2", {"grad": 0.5, "l1": 2}),
        ("l1=0,grad=1", {"l1": 0, "grad": 1}),
        (
            "silog=1,multiscale=0.5,grad_mm=2,grad_trusted",
            {"silog": 1, "multiscale": 0.5, "grad_mm": 2, "grad_trusted": 1},
        ),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_named(spec, weights):
    settings, given = LossSettings(loss=spec), images()
    assert settings.problems() == [] and settings.weights() == weights
    parts = compute_losses(settings, *given, BOUNDS)
    assert set(parts) == {*weights, "loss"}
    expected = sum(w * value(name, *given).double() for name, w in weights.items())
    assert parts["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_default_is_the_recipes_loss():
    assert (
        SETTINGS.weights() == {"l1": 1.0, "grad": 3.0}
        and (SETTINGS.gamma, SETTINGS.tau) == (10.0, 0.02)
        and not SETTINGS.problems()
    )


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
        ({"loss": "list"}, "there are l1, grad, grad_mm, grad_trusted, multiscale, silog"),
        ({"tau_mm": -1.0}, "--tau-mm is -1.0: expected >= 0"),
        ({"tau_mm": math.nan}, "--tau-mm is nan"),
        ({"trusted_radius": -1}, "--trusted-radius is -1: expected 0 to 64"),
        ({"scales": 0}, "--scales is 0: expected 1 to 16"),
        ({"scales": 17}, "--scales is 17"),
        ({"silog_lambda": 1.5}, "--silog-lambda is 1.5: expected 0 to 1"),
        ({"silog_lambda": math.nan}, "--silog-lambda is nan"),
        (
            {"relative": True, "loss": "l1=1,silog=1,grad_mm=2"},
            "--relative and --loss l1=1,silog=1,grad_mm=2: grad_mm, silog need millimetres",
        ),
    ],
)
def test_settings_that_cannot_work_are_one_line_each(settings, said):
    (line,) = LossSettings(**settings).problems()
    assert said in line


def test_all_that_is_wrong_is_listed():
    assert len(LossSettings(loss="l1=-1", gamma=-1.0, tau=-1.0).problems()) == 3
