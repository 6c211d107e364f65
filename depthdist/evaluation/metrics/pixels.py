"""Depth metrics per pixel, in millimetres, per image: each one registered function that knows its
unit, direction and definition.

p is the prediction, g the truth, both in mm, 1-D over the valid pixels of one image; d = ln p - ln
g. Values are computed in float64. A dataset's value is the mean over its images (those that a
metric says nothing of are left out, and counted). Definitions that go under one name in the field
have a name each here. Edges, surfaces and grooves have modules of their own.

    image_metrics(pred_mm, depth_mm, mask)                    # {"abs_rel": 0.047, ...}
    binned(pred_mm, depth_mm, mask, (250, 750, 1500))         # {"abs_rel@250-750": ..., ...}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from depthdist.evaluation.metrics.registry import BINS_MM, Metric

HEADLINE = ("abs_rel", "delta1", "rmse_mm", "mae_mm")  # what a terminal has room for


PixelMetric = Callable[[Tensor, Tensor], Tensor]
PIXEL_METRICS: dict[str, Metric] = {}
FUNCTIONS: dict[str, PixelMetric] = {}


def register_metric(
    name: str, unit: str, better: str, definition: str
) -> Callable[[PixelMetric], PixelMetric]:
    """Register a metric of the valid pixels' prediction and truth, (N,) float64 mm each, all > 0."""

    def register(function: PixelMetric) -> PixelMetric:
        PIXEL_METRICS[name], FUNCTIONS[name] = Metric(name, unit, better, definition), function
        return function

    return register


@register_metric("abs_rel", "", "lower", "mean(|p - g| / g)")
def abs_rel(p: Tensor, g: Tensor) -> Tensor:
    return ((p - g).abs() / g).mean()


@register_metric("delta1", "", "higher", "share of pixels with max(p / g, g / p) < 1.25")
def delta1(p: Tensor, g: Tensor) -> Tensor:
    return _within(p, g, 1.25)


@register_metric("rmse_mm", "mm", "lower", "sqrt(mean((p - g)^2))")
def rmse_mm(p: Tensor, g: Tensor) -> Tensor:
    return (p - g).square().mean().sqrt()


@register_metric("mae_mm", "mm", "lower", "mean(|p - g|)")
def mae_mm(p: Tensor, g: Tensor) -> Tensor:
    return (p - g).abs().mean()


@register_metric("delta2", "", "higher", "share of pixels with max(p / g, g / p) < 1.25^2")
def delta2(p: Tensor, g: Tensor) -> Tensor:
    return _within(p, g, 1.25**2)


@register_metric("delta3", "", "higher", "share of pixels with max(p / g, g / p) < 1.25^3")
def delta3(p: Tensor, g: Tensor) -> Tensor:
    return _within(p, g, 1.25**3)


@register_metric("sq_rel_eigen_mm", "mm", "lower", "mean((p - g)^2 / g); Eigen et al. 2014")
def sq_rel_eigen_mm(p: Tensor, g: Tensor) -> Tensor:
    return ((p - g).square() / g).mean()


@register_metric("sq_rel_kitti", "", "lower", "mean((p - g)^2 / g^2); KITTI devkit")
def sq_rel_kitti(p: Tensor, g: Tensor) -> Tensor:
    return ((p - g) / g).square().mean()


@register_metric("rmse_log", "", "lower", "sqrt(mean(d^2))")
def rmse_log(p: Tensor, g: Tensor) -> Tensor:
    return _log_ratio(p, g).square().mean().sqrt()


@register_metric("log10", "", "lower", "mean(|log10 p - log10 g|)")
def log10(p: Tensor, g: Tensor) -> Tensor:
    return _log_ratio(p, g).abs().mean() / math.log(10)


@register_metric("silog_dav2", "", "lower", "sqrt(mean(d^2) - 0.5 mean(d)^2); Depth Anything V2's")
def silog_dav2(p: Tensor, g: Tensor) -> Tensor:
    d = _log_ratio(p, g)
    return (d.var(correction=0) + 0.5 * d.mean().square()).sqrt()


@register_metric("silog_kitti", "", "lower", "100 sqrt(mean(d^2) - mean(d)^2); KITTI's, ZoeDepth's")
def silog_kitti(p: Tensor, g: Tensor) -> Tensor:
    return 100 * _log_ratio(p, g).var(correction=0).sqrt()


@register_metric("irmse_per_km", "1/km", "lower", "sqrt(mean((1/p - 1/g)^2)), p and g in km")
def irmse_per_km(p: Tensor, g: Tensor) -> Tensor:
    return 1e6 * (1 / p - 1 / g).square().mean().sqrt()


def _within(p: Tensor, g: Tensor, factor: float) -> Tensor:
    return (torch.maximum(p / g, g / p) < factor).double().mean()


def _log_ratio(p: Tensor, g: Tensor) -> Tensor:
    return p.log() - g.log()


def image_metrics(pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> dict[str, float]:
    """Every registered metric of one image; NaN, all of them, where no pixel is valid.

    pred_mm, depth_mm  (H, W) float mm, > 0 in the mask;  mask  (H, W) bool
    """
    return _of_pixels(pred_mm[mask].double(), depth_mm[mask].double())


def binned_metrics(
    pred_mm: Tensor, depth_mm: Tensor, mask: Tensor, edges_mm: Sequence[float] = BINS_MM
) -> dict[str, float]:
    """The same over the pixels whose truth lies in [low, high) of each bin, as "NAME@low-high"; the
    last bin has its upper end in it.
    """
    p, g = pred_mm[mask].double(), depth_mm[mask].double()
    bins = (
        torch.bucketize(g, torch.tensor(edges_mm, dtype=torch.float64, device=g.device), right=True)
        - 1
    )
    bins[g == edges_mm[-1]] = len(edges_mm) - 2
    found = {}
    for i, (low, high) in enumerate(zip(edges_mm, edges_mm[1:])):
        found |= {
            f"{name}@{low:g}-{high:g}": value
            for name, value in _of_pixels(p[bins == i], g[bins == i]).items()
        }
    return found


def _of_pixels(p: Tensor, g: Tensor) -> dict[str, float]:
    if not len(g):
        return dict.fromkeys(PIXEL_METRICS, math.nan)
    return dict(
        zip(
            PIXEL_METRICS, torch.stack([function(p, g) for function in FUNCTIONS.values()]).tolist()
        )
    )


def bin_metrics(edges_mm: Sequence[float] = BINS_MM) -> dict[str, Metric]:
    """What `binned` gives, as metrics."""
    places = [
        (f"{low:g}-{high:g}", f"{m.definition}, over {low:g} <= g < {high:g} mm", m)
        for low, high in zip(edges_mm, edges_mm[1:])
        for m in PIXEL_METRICS.values()
    ]
    return {
        f"{m.name}@{place}": Metric(f"{m.name}@{place}", m.unit, m.better, words)
        for place, words, m in places
    }
