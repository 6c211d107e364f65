"""Predictions of models that are not metric, brought to the truth's scale: each way has a name, and
the name goes into the output.

    pred_mm = aligned("disparity", pred_mm, depth_mm, mask)

Whatever uses the truth of the very image that is scored flatters: rows so aligned are never to be
read as millimetres that a model gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAREST_MM = 1.0  # a depth that an alignment makes 0 or negative counts as this


def none(p: Tensor, g: Tensor, everywhere: Tensor) -> Tensor:
    """As it is."""
    return everywhere


def median(p: Tensor, g: Tensor, everywhere: Tensor) -> Tensor:
    """Times median(g) / median(p)."""
    return everywhere * (_median(g) / _median(p))


def scale_and_shift_in_depth(p: Tensor, g: Tensor, everywhere: Tensor) -> Tensor:
    """S p + t with the least squares of s p + t - g."""
    s, t = _line(p, g)
    return s * everywhere + t


def scale_and_shift_in_disparity(p: Tensor, g: Tensor, everywhere: Tensor) -> Tensor:
    """1 / (s / p + t) with the least squares of s / p + t - 1 / g.

    Not less than 1 / max(g) before it is inverted (MoGe's).
    """
    s, t = _line(1 / p, 1 / g)
    return 1 / (s / everywhere + t).clamp(min=float(1 / g.max()))


ALIGNMENTS = {
    "none": none,
    "median": median,
    "depth": scale_and_shift_in_depth,
    "disparity": scale_and_shift_in_disparity,
}


def align(way: str, pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> Tensor:
    """`pred_mm` (H, W) aligned to the truth over the mask by one of WAYS, float64, >= NEAREST_MM.

    As it is where the mask is empty.
    """
    pred = pred_mm.double()
    if not mask.any():
        return pred
    return ALIGNMENTS[way](pred[mask], depth_mm[mask].double(), pred).clamp(min=NEAREST_MM)


def _median(x: Tensor) -> Tensor:
    """The mean of the two middle values.

    Torch's own takes the lower one, and its quantile no more than 2^24 values.
    """
    ordered, middle = x.sort().values, (len(x) - 1) // 2
    return (ordered[middle] + ordered[len(x) // 2]) / 2


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of the least squares of s x + t - y.

    S is 0 where x is everywhere the same.
    """
    x0, y0 = x.mean(), y.mean()
    spread = (x - x0).square().sum()
    s = ((x - x0) * (y - y0)).sum() / spread if spread > 0 else torch.zeros_like(x0)
    return s, y0 - s * x0
