"""Depth metrics in millimetres, per image: each one registered function that knows its unit, direction and definition.

p is the prediction, g the truth, both in mm, 1-D over the valid pixels of one image. Values are computed in float64.
A dataset's value is the mean over its images (images without a valid pixel are left out, and counted).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """One metric: `unit` is "" for a ratio, `better` is "lower" or "higher"."""

    name: str
    unit: str
    better: str
    definition: str
    function: Callable[[Tensor, Tensor], Tensor]


METRICS: dict[str, Metric] = {}


def metric(name: str, unit: str, better: str, definition: str) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[[Tensor, Tensor], Tensor]]:
    """Register a metric of the valid pixels' prediction and truth, (N,) float64 mm each."""

    def register(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        METRICS[name] = Metric(name, unit, better, definition, function)
        return function

    return register


@metric("abs_rel", "", "lower", "mean(|p - g| / g)")
def abs_rel(p: Tensor, g: Tensor) -> Tensor:
    return ((p - g).abs() / g).mean()


@metric("delta1", "", "higher", "share of pixels with max(p / g, g / p) < 1.25")
def delta1(p: Tensor, g: Tensor) -> Tensor:
    return (torch.maximum(p / g, g / p) < 1.25).double().mean()


@metric("rmse_mm", "mm", "lower", "sqrt(mean((p - g)^2))")
def rmse_mm(p: Tensor, g: Tensor) -> Tensor:
    return (p - g).square().mean().sqrt()


@metric("mae_mm", "mm", "lower", "mean(|p - g|)")
def mae_mm(p: Tensor, g: Tensor) -> Tensor:
    return (p - g).abs().mean()


def image_metrics(pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> dict[str, float] | None:
    """Every registered metric of one image, or None where no pixel is valid.

    pred_mm, depth_mm  (H, W) float32 mm;  mask  (H, W) bool
    """
    if not mask.any():
        return None
    p, g = pred_mm[mask].double(), depth_mm[mask].double()
    return dict(zip(METRICS, torch.stack([m.function(p, g) for m in METRICS.values()]).tolist()))
