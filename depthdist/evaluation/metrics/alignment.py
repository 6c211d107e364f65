"""Bring predictions of models that are not metric to the scale of the ground truth.

    pred_mm = align("disparity", pred_mm, depth_mm, mask)

Each alignment has a name, and the name goes into the output. An alignment uses the ground truth of
the image that is scored, so its result is optimistic: never read an aligned row as millimetres that
a model gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEAREST_MM = 1.0  # replaces a depth that an alignment makes smaller, 0 or negative


def none(p: Tensor, g: Tensor, pred: Tensor) -> Tensor:
    """Return pred unchanged."""
    return pred


def median(p: Tensor, g: Tensor, pred: Tensor) -> Tensor:
    """Return pred scaled by the ratio of the medians of g and p."""
    return pred * (_median(g) / _median(p))


def scale_and_shift_in_depth(p: Tensor, g: Tensor, pred: Tensor) -> Tensor:
    """Return s pred + t with the least squares of s p + t - g."""
    s, t = _fit_line(p, g)
    return s * pred + t


def scale_and_shift_in_disparity(p: Tensor, g: Tensor, pred: Tensor) -> Tensor:
    """Return 1 / (s / pred + t) with the least squares of s / p + t - 1 / g.

    Before it is inverted it is raised to 1 / max(g) at least, as in MoGe.
    """
    s, t = _fit_line(1 / p, 1 / g)
    return 1 / (s / pred + t).clamp(min=float(1 / g.max()))


# of the prediction p and the ground truth g at the valid pixels, (N,) float64 mm, and the whole
# prediction (H, W): the whole prediction aligned
Alignment = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
ALIGNMENTS: dict[str, Alignment] = {
    "none": none,
    "median": median,
    "depth": scale_and_shift_in_depth,
    "disparity": scale_and_shift_in_disparity,
}


def align(alignment: str, pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> Tensor:
    """Return pred_mm (H, W) aligned to the ground truth over the mask, float64, >= NEAREST_MM.

    `alignment` is one of ALIGNMENTS. Where the mask is empty the prediction is returned unchanged.
    """
    pred = pred_mm.double()
    if not mask.any():
        return pred
    aligned = ALIGNMENTS[alignment](pred[mask], depth_mm[mask].double(), pred)
    return aligned.clamp(min=NEAREST_MM)


def _median(x: Tensor) -> Tensor:
    """Return the mean of the two middle values.

    torch.median takes the lower one, and torch.quantile no more than 2^24 values.
    """
    ordered = x.sort().values
    return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2


def _fit_line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the least squares of s x + t - y; s is 0 if x is constant."""
    x0 = x.mean()
    y0 = y.mean()
    spread = (x - x0).square().sum()
    s = ((x - x0) * (y - y0)).sum() / spread if spread > 0 else x0.new_zeros(())
    return s, y0 - s * x0
