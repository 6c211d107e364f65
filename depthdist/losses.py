"""Losses on normalised inverse depth: one registered function each, one number an image.

Every loss takes `pred`, `target` (B, H, W) float32, `mask` (B, H, W) bool, the settings and the
bounds in mm of the normalised scale, and returns (B,) float32. Per image first: the mean over
images is the caller's, so a batch cut into ranks or micro-batches gives the same number. Outside
the mask both maps are 0 when a loss sees them, whatever stood there. All promise 0 on a perfect
prediction, 0 and no gradient on an empty mask, and that nothing outside the mask counts.

    # {"l1": (B,), "grad": (B,), "loss": (B,)}
    parts = compute(LossSettings(), pred, target, mask, bounds)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from depthdist.geometry.depth_range import DepthRange, denormalize_depth

LOSSES: dict[str, Callable[..., Tensor]] = {}
TAIL, LOW, HIGH = (
    0.02,
    1.0,
    9.0,
    # --relative: the share of pixels beyond each end of its range; within 0..10, about what
    # published
    # models give
)


@dataclass(frozen=True)
class LossSettings:
    """Loss (on normalised inverse depth, at the truth's own resolution)"""

    loss: str = "l1=1,grad=3"
    """Which losses, each with its weight: NAME=WEIGHT with commas between. A name that is none,
    such as list, is answered with those there are."""
    gamma: float = 10.0
    """Extra weight of the losses grad, grad_mm and grad_trusted where the truth has an edge: 1 +
    gamma."""
    tau: float = 0.02
    """grad: step of the truth from one pixel to the next that counts as an edge, on the
    normalised scale (0..1)."""
    tau_mm: float = 4.0
    """grad_mm, grad_trusted: step of the truth from one pixel to the next that counts as an
    edge, mm of depth."""
    trusted_radius: int = 2
    """grad_trusted: an edge counts where all pixels up to this many rows and columns away were
    measured."""
    scales: int = 4
    "multiscale: how many scales; each takes every second pixel of the one before."
    silog_lambda: float = 0.5
    """silog: how much of the mean log ratio is forgiven; 0 none; 1 all, so that depth need be
    right only up to a factor."""
    relative: bool = False
    """Ask for relative depth: each picture's truth is brought to one range, 1 to 9, whatever its
    scale and shift. For pretraining; l1 and multiscale fit."""

    def weights(self) -> dict[str, float]:
        """Weight by loss name; ValueError for an unknown name or a weight that is no number."""
        parsed = {}
        for item in self.loss.split(","):
            name, _, weight = item.partition("=")
            if name.strip() not in LOSSES:
                raise ValueError(
                    f"--loss {self.loss}: {name.strip()!r} is not a loss; there are"
                    f" {', '.join(LOSSES)}"
                )
            if name.strip() in parsed:
                raise ValueError(f"--loss {self.loss}: {name.strip()} stands there twice")
            try:
                parsed[name.strip()] = float(weight or 1)
                if not math.isfinite(parsed[name.strip()]):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"--loss {self.loss}: the weight of {name} is {weight!r}; expected a number"
                ) from None
        return parsed

    def problems(self) -> list[str]:
        found = []
        try:
            weights = self.weights()
            if min(weights.values()) < 0 or not any(weights.values()):
                found.append(f"--loss {self.loss}: every weight must be >= 0 and one above 0")
            if self.relative and (
                metric := sorted({"grad_mm", "grad_trusted", "silog"} & set(weights))
            ):
                found.append(
                    f"--relative and --loss {self.loss}: {', '.join(metric)} need millimetres,"
                    " which relative depth has none of; expected other losses"
                )
        except ValueError as err:
            found.append(str(err))
        for name, right, expected in (
            ("gamma", 0 <= self.gamma < math.inf, ">= 0"),
            ("tau", 0 <= self.tau < math.inf, ">= 0"),
            ("tau_mm", 0 <= self.tau_mm < math.inf, ">= 0"),
            ("trusted_radius", 0 <= self.trusted_radius <= 64, "0 to 64"),
            ("scales", 1 <= self.scales <= 16, "1 to 16"),
            ("silog_lambda", 0 <= self.silog_lambda <= 1, "0 to 1"),
        ):
            if not right:
                found.append(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}: expected {expected}"
                )
        return found


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
    """Mean absolute difference over the mask: sum(M |d^ - d|) / sum M."""
    return _sum((pred - target).abs()) / _count(mask)


@loss("grad")
def grad(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Mean absolute difference of the forward differences in x and in y, weighted 1 + gamma on the
    truth's edges.

    sum(|dx d^ - dx d| wx Mx) / sum Mx + the same in y, with Mx = M[:, 1:] M[:, :-1] and wx = 1 +
    gamma [|dx d| > tau] (after Eigen & Fergus 2015 and MegaDepth, Li & Snavely 2018; the edge
    weight is the recipe's).
    """
    return _steps(
        pred, target, mask, lambda axis: _edges(target, settings.tau, axis), settings.gamma
    )


@loss("grad_mm")
def grad_mm(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """`grad`, but an edge is a step of the truth of more than tau_mm millimetres: wx = 1 + gamma
    [|dx z| > tau_mm].

    On the normalised scale (0.25 to 3.9 m) a step of 8 mm is 0.004 at 0.7 m and 0.0003 at 2.5 m: no
    one tau fits both. A groove's rim spreads over pixels: in built-in captures at full size 4 mm
    fires on 24 to 69 % of the rims' pairs, 8 mm on 14 to 33 %.
    """
    depth_mm = denormalize_depth(target, bounds)
    return _steps(
        pred, target, mask, lambda axis: _edges(depth_mm, settings.tau_mm, axis), settings.gamma
    )


@loss("grad_trusted")
def grad_trusted(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """`grad_mm`, but an edge weighs 1 + gamma only where both its pixels are far from holes: wx = 1
    + gamma [|dx z| > tau_mm] Tx.

    T is True where the square of trusted_radius around a pixel is all valid (the picture's rim is
    no hole). A structured-light camera errs at silhouettes, which have holes beside them. Pairs
    there keep weight 1: else nothing would hold the rims.
    """
    depth_mm, trusted = (
        denormalize_depth(target, bounds),
        _surrounded(mask, settings.trusted_radius),
    )
    return _steps(
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
    """Multi-scale gradient matching: `grad` without its edge weight on every 1st, 2nd, 4th ...
    pixel, summed over the scales.

    sum_k [ sum(|dx R_k| Mx_k) / sum Mx_k + the same in y ],  R_k = (d^ - d)[::2^k, ::2^k], M_k likewise
    (MegaDepth, Li & Snavely 2018; MiDaS, Ranftl et al. 2020; there divided by pixels, here by the
    scale's valid pairs).
    """
    return _steps(pred, target, mask, strides=[2**k for k in range(settings.scales)])


@loss("silog")
def silog(
    pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings, bounds: DepthRange
) -> Tensor:
    """Scale-invariant log error of depth: sqrt(mean(g^2) - lambda mean(g)^2) over the mask, g = log
    z - log z^.

    Eigen et al. 2014, with the root as Depth Anything V2 trains with it. Squares are taken around
    the mean: the same sum, but never below 0. Where d^ < 0, beyond bounds.far_mm and near depth's
    pole, log z^ goes on as its tangent: finite, and still a pull.
    """
    lo, span = 1.0 / bounds.far_mm, 1.0 / bounds.near_mm - 1.0 / bounds.far_mm
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
    """Each named loss and their weighted sum "loss", (B,) float32 each.

    Inputs are raised to float32 first.
    """
    assert pred.shape == target.shape == mask.shape and mask.dtype == torch.bool, (
        pred.shape,
        target.shape,
        mask.shape,
        mask.dtype,
    )
    pred, target = (torch.where(mask, values.float(), 0.0) for values in (pred, target))
    weights = settings.weights()
    if settings.relative:
        target = in_range(target, mask)
    parts = {name: LOSSES[name](pred, target, mask, settings, bounds) for name in weights}
    parts["loss"] = sum(weight * parts[name] for name, weight in weights.items())
    return parts


def in_range(target: Tensor, mask: Tensor) -> Tensor:
    """Each picture's truth moved and scaled so that 2 % of its valid pixels lie below LOW and 2 %
    above HIGH, (B, H, W) float32.

    What differs between pictures by a scale and a shift of 1/z alone becomes the same (MiDaS,
    Ranftl et al. 2020, does it to the prediction too: then nothing holds its scale, and Adam walks
    off with it). A flat picture is LOW everywhere.
    """
    seen = torch.where(mask, target, torch.nan).flatten(1)
    low, high = torch.nanquantile(seen, seen.new_tensor([TAIL, 1.0 - TAIL]), dim=1).nan_to_num()[
        ..., None, None
    ]
    span = high - low
    return torch.where(
        mask, LOW + (target - low) * ((HIGH - LOW) / torch.where(span > 1e-6, span, torch.inf)), 0.0
    )


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _count(mask: Tensor) -> Tensor:
    """How many are True, but at least 1, (B,) float32: a sum over none of them, 0, may be divided
    by it.
    """
    return mask.flatten(1).sum(1, dtype=torch.float32).clamp(min=1.0)


def _pairs(mask: Tensor, axis: int) -> Tensor:
    """Where a pixel and its next along the axis are both True."""
    length = mask.shape[axis] - 1
    return mask.narrow(axis, 1, length) & mask.narrow(axis, 0, length)


def _edges(truth: Tensor, tau: float, axis: int) -> Tensor:
    """1.0 where the truth steps by more than tau to the next pixel, else 0.0."""
    return truth.diff(dim=axis).abs_().gt_(tau)


def _surrounded(mask: Tensor, radius: int) -> Tensor:
    """Where the square of `radius` around a pixel, as far as it lies in the picture, is all True."""
    for axis in (-1, -2):
        kept, size = mask.clone(), mask.shape[axis]
        for shift in range(1, min(radius, size - 1) + 1):
            for to, source in ((shift, 0), (0, shift)):
                kept.narrow(axis, to, size - shift).logical_and_(
                    mask.narrow(axis, source, size - shift)
                )
        mask = kept
    return mask


class _Known(torch.autograd.Function):
    """`value` (B,) whose gradient in `pred`, (B, H, W), is known: for `_steps` 1.4 x as fast as
    autograd, keeping under a third.
    """

    @staticmethod
    def forward(ctx, pred: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None, None], None, None


def _steps(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    edges: Callable[[int], Tensor] | None = None,
    gamma: float = 0.0,
    strides: Iterable[int] = (1,),
) -> Tensor:
    """Mean over pairs of valid neighbours of |step of d^ - step of d| in x plus the same in y,
    (B,), summed over the strides.

    edges  by axis, 1.0 where a pair weighs 1 + gamma, 0.0 where it weighs 1
    """
    with torch.no_grad():
        error = pred - target
        total, gradient = error.new_zeros(len(error)), torch.zeros_like(error)
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
    return _Known.apply(pred, total, gradient)
