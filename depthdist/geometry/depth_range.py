"""Convert depth in mm to its normalized inverse, which the network learns, and back.

Inverse depth after MiDaS (Ranftl et al. 2020), but with one range for the whole dataset instead of
one per image, so that the way back gives millimetres.

    depth_range = DepthRange(near_mm=251.74, far_mm=3907.45)
    target, mask = normalize_depth(depth_mm, depth_range)
    depth_mm = denormalize_depth(target, depth_range)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

# mm; guards the division: 1e-6 added to the inverse depth instead would move 3.9 m by 15 mm
EPS = 1e-6
ROUNDING = 1e-6  # relative; a pixel that sets a bound stays inside after rounding to float32


class DepthRange(NamedTuple):
    """Nearest and farthest valid Z of the training set, mm: 1 and 0 on the normalized scale.

    The scale is linear in 1/z, or in z itself.
    """

    near_mm: float
    far_mm: float
    scale: Literal["inverse", "linear"] = "inverse"

    def checked(self) -> DepthRange:
        """Return itself, raise ValueError unless 0 < near < far."""
        if not 0 < self.near_mm < self.far_mm < float("inf"):
            raise ValueError(
                f"depth depth_range are {self.near_mm} .. {self.far_mm} mm; expected 0 < near < far"
            )
        return self


def normalize_depth(
    depth_mm: Tensor, depth_range: DepthRange, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return normalized inverse depth (or depth, on a linear scale) and the mask of valid pixels.

    depth_mm  (..., H, W) any float type, mm; NaN, inf or <= 0 where nothing was measured
    mask      (..., H, W) bool, optional: False excludes a pixel as well
    returns   target (..., H, W) float32 in [0, 1], 1 at depth_range.near_mm; mask (..., H, W) bool

    Outside the mask the target is 0, never NaN: NaN times 0 is still NaN and would reach the loss.
    """
    near, far, _ = depth_range
    z = depth_mm.float()
    valid = torch.isfinite(z) & (z > 0) & (z >= near * (1 - ROUNDING)) & (z <= far * (1 + ROUNDING))
    if mask is not None:
        valid &= mask
    target = normalize_valid(z, depth_range)
    return torch.where(valid, target.clamp(0.0, 1.0), 0.0), valid


def normalize_valid(depth_mm: Tensor, depth_range: DepthRange) -> Tensor:
    """Return normalized inverse depth of depth that is valid everywhere, the reverse of the next.

    Depth outside the range becomes less than 0 or more than 1.
    """
    near, far, scale = depth_range
    if scale == "linear":
        return (far - depth_mm) / (far - near)
    lowest, highest = 1.0 / far, 1.0 / near
    return (1.0 / (depth_mm + EPS) - lowest) / (highest - lowest)


def denormalize_depth(target: Tensor, depth_range: DepthRange) -> Tensor:
    """Return depth in mm, (..., H, W) float32, from normalized inverse depth.

    Values below 0 (bicubic overshoot) count as 0, which is depth_range.far_mm: the scale ends
    there, beyond it is a pole. Values above 1 are nearer than anything in the training set and stay
    so (on a linear scale down to 1 mm).
    """
    near, far, scale = depth_range
    target = target.float().clamp(min=0.0)
    if scale == "linear":
        return (far - target * (far - near)).clamp(min=1.0)
    lowest, highest = 1.0 / far, 1.0 / near
    return 1.0 / (lowest + target * (highest - lowest))
