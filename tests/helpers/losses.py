"""Every loss as a float64 loop over pixels, and images to try them on."""

import math

import numpy as np
import torch

from depthdist.geometry.depth_range import DepthRange
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses

SETTINGS = LossSettings()
BOUNDS = DepthRange(251.74, 3907.45)
LO = 1 / BOUNDS.far_mm
SPAN = 1 / BOUNDS.near_mm - 1 / BOUNDS.far_mm
EPS = 1e-6


def with_gradient(number):
    """A function that gives back what it gets; its gradient is multiplied by that number."""

    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * number

    return Poisoned.apply


def loop_l1(pred, target, mask, settings):
    total = count = 0.0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                total = total + abs(pred[y, x] - target[y, x])
                count = count + 1
    return total / (count + EPS)


def loop_steps(pred, target, mask, gamma, is_edge):
    """is_edge  of the pair (y, x), (y2, x2)"""
    value = 0.0
    for dy, dx in ((0, 1), (1, 0)):
        total = count = 0.0
        for y in range(mask.shape[0] - dy):
            for x in range(mask.shape[1] - dx):
                if mask[y, x] and mask[y + dy, x + dx]:
                    d_pred = pred[y + dy, x + dx] - pred[y, x]
                    d_target = target[y + dy, x + dx] - target[y, x]
                    total = total + abs(d_pred - d_target) * (
                        1 + gamma * is_edge(y, x, y + dy, x + dx)
                    )
                    count = count + 1
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


def images(seed=0, shape=(3, 9, 11), valid=0.7):
    """pred, target float32 and mask; the target has steps on both sides of tau and of 200 mm."""
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
