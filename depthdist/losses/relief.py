"""The loss of the detail stage, in mm at the camera's own size: relief, contours, and the rest.

    losses = relief_losses(settings, log_depth, coarse_log, depth_mm, mask)
    # {"relief": (B,), "smooth": (B,), "contour": (B,), "level": (B,), "loss": (B,)}

With z the measured depth, e the error in mm, z (log z^ - log z), c the correction in mm,
z (log z^ - log of the coarse depth), second differences D_k e = e[i - k] - 2 e[i] + e[i + k] and
first ones d_k e = e[i + k] - e[i], both in both directions:

    relief   mean of w Huber(D_k e); w = RELIEF_WEIGHT where the truth's |D_k z| is 1.5 .. 25 mm,
             0 where it is more (a silhouette), else 1
    smooth   mean of w |d_k e| for small k; w = 0 where |d_k z| is 25 mm or more, else 1
    contour  mean of w |d_k e| for a large k; w = 1 where |d_k z| is 60 mm or more, else 0
    level    |mean of c| over the crop

Second differences do not see that the coarse depth is 100 mm off or slanted: what is left of it is
relief, and a groove's depth is fitted in the mean (Huber's penalty is a square up to HUBER_MM).
Across a contour, first differences over some pixels would smear it: where its place is unsure, no
step is the best guess. Over many pixels the step is sure, and that the error is alike on both sides
asks for it. What a crop cannot tell is how far away all of it is: the level holds it at the coarse
depth. A term counts only where all its pixels were measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdist.core.settings import range_problems

FULL_WIDTH = 1944  # pixels of the image for which the strides are given
RELIEF_MM = (1.5, 25.0)  # second differences of the truth that are relief
RELIEF_WEIGHT = 6.0
RELIEF_STRIDES = (4, 10)
SMOOTH_STRIDES = (1, 4)
CONTOUR_STRIDE = 32
CONTOUR_MM = 60.0  # steps of the truth that are a contour
HUBER_MM = 3.0


@dataclass(frozen=True)
class ReliefWeights:
    """Weights of the terms."""

    relief: float = 3.0
    smooth: float = 1.0
    contour: float = 1.0
    level: float = 0.5

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        return range_problems(
            self, *((name, getattr(self, name) >= 0, ">= 0") for name in vars(self))
        )


def relief_losses(
    settings: ReliefWeights,
    log_depth: Tensor,
    coarse_log: Tensor,
    depth_mm: Tensor,
    mask: Tensor,
    image_width: int = FULL_WIDTH,
) -> dict[str, Tensor]:
    """Return each term and their weighted sum as `loss`, (B,) float32 each, of crops.

    log_depth       (B, H, W) float32, natural logarithm of the predicted depth in mm
    coarse_log      (B, H, W) float32, that of the coarse depth
    depth_mm, mask  (B, H, W) measured depth, and where it counts
    image_width     of the whole image, pixels: strides are in proportion to it, as far as the
                    crop holds them
    """
    longest = (min(mask.shape[1:]) - 1) // 2  # of a second difference that the crop holds

    def scaled(*strides: int) -> list[int]:
        return [min(max(1, round(k * image_width / FULL_WIDTH)), longest) for k in strides]

    truth = torch.where(mask, depth_mm, 1.0)
    error = torch.where(mask, (log_depth - truth.log()) * truth, 0.0)
    relief = _relief_terms(error, truth, mask, scaled(*RELIEF_STRIDES))
    smooth = _smooth_terms(error, truth, mask, scaled(*SMOOTH_STRIDES))
    contour = _contour_terms(error, truth, mask, scaled(CONTOUR_STRIDE))
    correction = torch.where(mask, (log_depth - coarse_log) * truth, 0.0)
    terms = {
        "relief": _mean(relief),
        "smooth": _mean(smooth),
        "contour": _mean(contour),
        "level": _share(correction, mask).abs(),
    }
    total = torch.stack([getattr(settings, name) * term for name, term in terms.items()]).sum(0)
    return {**terms, "loss": total}


def _relief_terms(
    error: Tensor, truth: Tensor, mask: Tensor, strides: list[int]
) -> Iterator[Tensor]:
    low, high = RELIEF_MM
    for stride in strides:
        for axis in (1, 2):
            valid = triples(mask, stride, axis)
            bend = second_differences(truth, stride, axis).abs()
            weight = ((bend >= low) * (RELIEF_WEIGHT - 1) + 1) * (bend < high)
            yield _share(weight * huber(second_differences(error, stride, axis)), valid)


def _smooth_terms(
    error: Tensor, truth: Tensor, mask: Tensor, strides: list[int]
) -> Iterator[Tensor]:
    for stride in strides:
        for axis in (1, 2):
            no_contour = first_differences(truth, stride, axis).abs() < RELIEF_MM[1]
            off = first_differences(error, stride, axis).abs()
            yield _share(off * no_contour, pairs(mask, stride, axis))


def _contour_terms(
    error: Tensor, truth: Tensor, mask: Tensor, strides: list[int]
) -> Iterator[Tensor]:
    for stride in strides:
        for axis in (1, 2):
            contour = first_differences(truth, stride, axis).abs() >= CONTOUR_MM
            off = first_differences(error, stride, axis).abs()
            yield _share(off * contour, pairs(mask, stride, axis))


def first_differences(values: Tensor, stride: int, axis: int) -> Tensor:
    """Return values[i + stride] - values[i] along an axis of (B, H, W)."""
    num = values.shape[axis] - stride
    return values.narrow(axis, stride, num) - values.narrow(axis, 0, num)


def pairs(mask: Tensor, stride: int, axis: int) -> Tensor:
    """Return where both pixels of a first difference count."""
    num = mask.shape[axis] - stride
    return mask.narrow(axis, 0, num) & mask.narrow(axis, stride, num)


def second_differences(values: Tensor, stride: int, axis: int) -> Tensor:
    """Return values[i - stride] - 2 values[i] + values[i + stride] along an axis of (B, H, W)."""
    num = values.shape[axis] - 2 * stride
    before, here, after = (values.narrow(axis, at, num) for at in (0, stride, 2 * stride))
    return before - 2 * here + after


def triples(mask: Tensor, stride: int, axis: int) -> Tensor:
    """Return where all three pixels of a second difference count."""
    num = mask.shape[axis] - 2 * stride
    before, here, after = (mask.narrow(axis, at, num) for at in (0, stride, 2 * stride))
    return before & here & after


def huber(error: Tensor) -> Tensor:
    """Return half the square over HUBER_MM, and beyond it a line of slope 1, mm."""
    zero = torch.zeros((), device=error.device).expand_as(error)
    return F.huber_loss(error, zero, reduction="none", delta=HUBER_MM) / HUBER_MM


def _share(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean (B,) over valid pixels, 0 without one; values are finite everywhere."""
    total = (values * valid).sum((1, 2))  # torch.where takes several times as long on a CPU
    return total / valid.sum((1, 2)).clamp(min=1)


def _mean(terms: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(terms)).mean(0)
