"""Losses on normalized inverse depth: one registered function each, one value per image.

Every loss takes `pred` and `target` (B, H, W) float32, `mask` (B, H, W) bool, the settings and the
depth range in mm of the normalized scale, and returns (B,) float32. The mean over images is left to
the caller, so that a batch split over ranks or micro-batches gives the same value. Outside the mask
both maps are 0 when a loss gets them. Every loss is 0 for a perfect prediction, is 0 with a zero
gradient for an empty mask, and does not depend on pixels outside the mask.

    parts = compute_losses(LossSettings(), pred, target, mask, bounds)
    # {"l1": (B,), "grad": (B,), "loss": (B,)}

A new loss is one more function with `@loss("name")`: `--loss` and the tests find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from depthdist.geometry.depth_range import DepthRange, denormalize_depth
from depthdist.losses.settings import LossSettings

LOSSES: dict[str, Callable[..., Tensor]] = {}
# of --relative: share of the pixels below LOW and above HIGH. Published models give about 0..10.
TAIL = 0.02
LOW = 1.0
HIGH = 9.0


def loss(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a loss function under the name that `--loss` uses."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        LOSSES[name] = function
        return function

    return register


@loss("l1")
def l1(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Return the mean absolute difference over the mask: sum(M |d^ - d|) / sum M."""
    return _sum((pred - target).abs()) / _count(mask)


@loss("grad")
def grad(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Return the mean absolute error of the differences between neighbors, edges weighted more.

    sum(|dx d^ - dx d| wx Mx) / sum Mx + the same in y, with Mx = M[:, 1:] M[:, :-1] and
    wx = 1 + gamma [|dx d| > tau] (after Eigen & Fergus 2015 and MegaDepth, Li & Snavely 2018; the
    edge weight comes from the published recipe).
    """
    return _difference_loss(
        pred, target, mask, lambda axis: _edges(target, settings.tau, axis), settings.gamma
    )


@loss("grad_mm")
def grad_mm(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Return `grad` with edges defined in millimetres: wx = 1 + gamma [|dx z| > tau_mm].

    On the normalized scale (0.25 to 3.9 m) a step of 8 mm is 0.004 at 0.7 m and 0.0003 at 2.5 m: no
    single tau fits both. A groove's rim is spread over several pixels: in built-in captures at full
    size 4 mm marks 24 to 69 % of the neighbor pairs on rims, 8 mm marks 14 to 33 %.
    """
    depth_mm = denormalize_depth(target, bounds)
    return _difference_loss(
        pred, target, mask, lambda axis: _edges(depth_mm, settings.tau_mm, axis), settings.gamma
    )


@loss("grad_trusted")
def grad_trusted(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Return `grad_mm` with the edge weight only far from holes.

    wx = 1 + gamma [|dx z| > tau_mm] Tx, where T is True if the square of trusted_radius around a
    pixel is valid everywhere (the image border does not count as a hole). A structured-light camera
    has errors at silhouettes, which have holes next to them. Pairs there keep weight 1, otherwise
    nothing would determine the prediction at rims.
    """
    depth_mm = denormalize_depth(target, bounds)
    trusted = _surrounded(mask, settings.trusted_radius)
    return _difference_loss(
        pred,
        target,
        mask,
        lambda axis: _edges(depth_mm, settings.tau_mm, axis).mul_(_pairs(trusted, axis)),
        settings.gamma,
    )


@loss("multiscale")
def multiscale(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Return multi-scale gradient matching: unweighted `grad` on every 1st, 2nd, 4th ... pixel.

    sum_k [ sum(|dx R_k| Mx_k) / sum Mx_k + the same in y ],  R_k = (d^ - d)[::2^k, ::2^k], M_k
    likewise (MegaDepth, Li & Snavely 2018; MiDaS, Ranftl et al. 2020; they divide by the number of
    pixels, this by the number of valid pairs of the scale).
    """
    return _difference_loss(pred, target, mask, strides=[2**k for k in range(settings.scales)])


@loss("silog")
def silog(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Return the scale-invariant log error of depth (Eigen et al. 2014).

    sqrt(mean(g^2) - lambda mean(g)^2) over the mask, g = log z - log z^, with the root as in Depth
    Anything V2. The squares are taken around the mean: the same sum, but never below 0. Where
    d^ < 0, beyond bounds.far_mm and near the pole of depth, log z^ is continued by its tangent:
    finite, with a gradient that leads back.
    """
    lo = 1.0 / bounds.far_mm
    span = 1.0 / bounds.near_mm - 1.0 / bounds.far_mm
    above = pred.clamp(min=0.0)
    g = torch.log1p((above - target) * (span / (lo + target * span))) + (pred - above) * (span / lo)
    mean = _sum(g) / _count(mask)
    around = torch.where(mask, g - mean[:, None, None], 0.0).square()
    square = _sum(around) / _count(mask) + (1.0 - settings.silog_lambda) * mean.square()
    perfect = square == 0  # there the root's slope is infinite
    return torch.where(perfect, 1.0, square).sqrt().masked_fill(perfect, 0.0)


def compute_losses(
    settings: LossSettings, pred: Tensor, target: Tensor, mask: Tensor, bounds: DepthRange
) -> dict[str, Tensor]:
    """Return each loss that the settings name and their weighted sum "loss", (B,) float32 each.

    pred, target  (B, H, W) of any precision; float32 from here on
    """
    assert pred.shape == target.shape == mask.shape, (pred.shape, target.shape, mask.shape)
    assert mask.dtype == torch.bool, mask.dtype
    pred = torch.where(mask, pred.float(), 0.0)
    target = torch.where(mask, target.float(), 0.0)
    weights = settings.weights()
    if settings.relative:
        target = to_relative_depth(target, mask)
    parts = {name: LOSSES[name](pred, target, mask, settings, bounds) for name in weights}
    parts["loss"] = cast(Tensor, sum(weight * parts[name] for name, weight in weights.items()))
    return parts


def to_relative_depth(target: Tensor, mask: Tensor) -> Tensor:
    """Return each image's target scaled and shifted to LOW..HIGH, (B, H, W) float32.

    2 % of its valid pixels lie below LOW and 2 % above HIGH. Images that differ only by a scale and
    a shift of 1/z become equal (MiDaS, Ranftl et al. 2020, does this to the prediction too: then
    nothing determines the prediction's scale, and Adam lets it drift). A constant image is LOW
    everywhere.
    """
    valid = torch.where(mask, target, torch.nan).flatten(1)  # (B, H W)
    ends = torch.nanquantile(valid, valid.new_tensor([TAIL, 1.0 - TAIL]), dim=1)  # (2, B)
    low, high = ends.nan_to_num()[..., None, None]
    span = high - low
    scale = (HIGH - LOW) / torch.where(span > 1e-6, span, torch.inf)
    return torch.where(mask, LOW + (target - low) * scale, 0.0)


def _sum(values: Tensor) -> Tensor:
    """Return the sum over each image, (B,)."""
    return values.flatten(1).sum(1)


def _count(mask: Tensor) -> Tensor:
    """Return the number of True, but at least 1, (B,) float32: a mean over none of them is 0."""
    return mask.flatten(1).sum(1, dtype=torch.float32).clamp(min=1.0)


def _pairs(mask: Tensor, axis: int) -> Tensor:
    """Return where a pixel and the next one along the axis are both True."""
    length = mask.shape[axis] - 1
    return mask.narrow(axis, 1, length) & mask.narrow(axis, 0, length)


def _edges(truth: Tensor, tau: float, axis: int) -> Tensor:
    """Return 1.0 where the next pixel along the axis differs by more than tau, else 0.0."""
    return truth.diff(dim=axis).abs_().gt_(tau)


def _surrounded(mask: Tensor, radius: int) -> Tensor:
    """Return where the square of `radius` around a pixel, cut at the border, is True everywhere."""
    for axis in (-1, -2):
        kept = mask.clone()
        size = mask.shape[axis]
        for shift in range(1, min(radius, size - 1) + 1):
            for to, source in ((shift, 0), (0, shift)):
                kept.narrow(axis, to, size - shift).logical_and_(
                    mask.narrow(axis, source, size - shift)
                )
        mask = kept
    return mask


class _KnownGradient(torch.autograd.Function):
    """Return `value` (B,) and use `gradient` (B, H, W) as its derivative by `pred`.

    For `_difference_loss` 1.4 x as fast as autograd, with under a third of its memory.
    """

    @staticmethod
    def forward(ctx: Any, pred: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None], None, None


def _difference_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    edges: Callable[[int], Tensor] | None = None,
    gamma: float = 0.0,
    strides: Iterable[int] = (1,),
) -> Tensor:
    """Return the mean error of the differences between neighbors, x plus y, (B,).

    The mean is over pairs of valid neighbors, the sum over the strides.

    edges    by axis: 1.0 where a pair has weight 1 + gamma, 0.0 where it has weight 1
    strides  use every n-th pixel, for each n
    """
    with torch.no_grad():
        error = pred - target
        total = error.new_zeros(len(error))
        gradient = torch.zeros_like(error)
        for stride in strides:
            seen, valid, pull = (t[:, ::stride, ::stride] for t in (error, mask, gradient))
            for axis in (-1, -2):
                weight = _pairs(valid, axis).float()
                share = 1.0 / _sum(weight).clamp(min=1.0)
                if edges is not None:
                    weight.addcmul_(weight, edges(axis), value=gamma)
                step = seen.diff(dim=axis)
                slope = step.sign().mul_(weight)
                total += _sum(step.mul_(slope)) * share
                slope *= share[:, None, None]
                pull.narrow(axis, 1, slope.shape[axis]).add_(slope)
                pull.narrow(axis, 0, slope.shape[axis]).sub_(slope)
    return _KnownGradient.apply(pred, total, gradient)
