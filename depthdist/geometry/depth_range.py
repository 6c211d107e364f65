"""Depth in mm, its normalised inverse (what the network learns), and the way between them.

Formulas: SPEC of the recipe, after MiDaS (Ranftl et al., 2020, scale-invariant inverse depth), with
global bounds instead of bounds per image, so that the way back gives millimetres.

    target, mask = normalize_depth(depth_mm, DepthRange(251.74, 3907.45))
    depth_mm = denormalize_depth(target, bounds)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

EPS = 1e-6  # mm; only guards the division: 1e-6 in the inverse domain would move 3.9 m by 15 mm


class DepthRange(NamedTuple):
    """Nearest and farthest valid Z of the training set, mm: 1 and 0 on the normalised scale, which
    is linear in 1/z, or in z itself.
    """

    near_mm: float
    far_mm: float
    scale: Literal["inverse", "linear"] = "inverse"

    def checked(self) -> DepthRange:
        """These bounds, or ValueError when they cannot normalise anything."""
        if not 0 < self.near_mm < self.far_mm < float("inf"):
            raise ValueError(
                f"depth bounds are {self.near_mm} .. {self.far_mm} mm; expected 0 < near < far"
            )
        return self


def normalize_depth(
    depth_mm: Tensor, bounds: DepthRange, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalised inverse depth (with a linear scale: depth), and where it may be trusted.

    depth_mm  (..., H, W) any float type, mm; NaN, inf or <= 0 where nothing was measured
    mask      (..., H, W) bool, optional: False takes a pixel out as well
    returns   target (..., H, W) float32 in [0, 1], 1 at bounds.near_mm; mask (..., H, W) bool

    Outside the mask the target is 0, never NaN: NaN times 0 is still NaN and would reach the loss.
    """
    z = depth_mm.float()
    ulps = 1e-6  # a pixel that sets a bound stays inside after rounding to float32
    valid = (
        torch.isfinite(z)
        & (z > 0)
        & (z >= bounds.near_mm * (1 - ulps))
        & (z <= bounds.far_mm * (1 + ulps))
    )
    if mask is not None:
        valid &= mask
    if bounds.scale == "linear":
        return (
            (bounds.far_mm - torch.where(valid, z, bounds.far_mm))
            / (bounds.far_mm - bounds.near_mm)
        ).clamp(0.0, 1.0), valid
    lo, hi = 1.0 / bounds.far_mm, 1.0 / bounds.near_mm
    inverse = 1.0 / (
        torch.where(valid, z, bounds.far_mm) + EPS
    )  # the farthest, so 0, where there is nothing
    return ((inverse - lo) / (hi - lo)).clamp(0.0, 1.0), valid


def denormalize_depth(target: Tensor, bounds: DepthRange) -> Tensor:
    """Depth in mm, (..., H, W) float32, from normalised inverse depth.

    Values below 0 (bicubic overshoot) count as 0, which is bounds.far_mm: farther there is no
    scale, only a pole. Values above 1 are nearer than anything in the training set and stay so (on
    a linear scale down to 1 mm).
    """
    if bounds.scale == "linear":
        return (
            bounds.far_mm - target.float().clamp(min=0.0) * (bounds.far_mm - bounds.near_mm)
        ).clamp(min=1.0)
    lo, hi = 1.0 / bounds.far_mm, 1.0 / bounds.near_mm
    return 1.0 / (lo + target.float().clamp(min=0.0) * (hi - lo))
