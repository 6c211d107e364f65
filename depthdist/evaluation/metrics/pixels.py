"""Depth metrics per pixel, in millimetres, per image.

Each metric is one registered function: its name is the function's name, its definition the
function's docstring. p is the prediction, g the ground truth, both in mm, 1-D over the valid pixels
of one image; d = ln p - ln g. Values are computed in float64. The value of a dataset is the mean
over its images (images without a value are left out and counted). Definitions that share a name
in the literature have a name each here. Edges, surfaces and grooves have modules of their own.

    image_metrics(pred_mm, depth_mm, mask)                    # {"abs_rel": 0.047, ...}
    binned_metrics(pred_mm, depth_mm, mask, (250, 750, 1500)) # {"abs_rel@250-750": ..., ...}

Settings import this module for the names of the metrics, so torch is imported where it is used.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from depthdist.evaluation.metrics.registry import BINS_MM, Metric, metrics_by_name

if TYPE_CHECKING:
    from torch import Tensor

HEADLINE = ("abs_rel", "delta1", "rmse_mm", "mae_mm")  # those that fit into a terminal's line

PixelMetric = Callable[["Tensor", "Tensor"], "Tensor"]
PIXEL_METRICS: dict[str, Metric] = {}
FUNCTIONS: dict[str, PixelMetric] = {}


def register_metric(unit: str, better: str) -> Callable[[PixelMetric], PixelMetric]:
    """Register a metric of the valid pixels' prediction and ground truth, (N,) float64 mm, > 0.

    The docstring is "Return DEFINITION."
    """

    def register(function: PixelMetric) -> PixelMetric:
        name = function.__name__
        definition = (inspect.getdoc(function) or "").removeprefix("Return ").removesuffix(".")
        PIXEL_METRICS[name] = Metric(name, unit, better, definition)
        FUNCTIONS[name] = function
        return function

    return register


@register_metric("", "lower")
def abs_rel(p: Tensor, g: Tensor) -> Tensor:
    """Return mean(|p - g| / g)."""
    return ((p - g).abs() / g).mean()


@register_metric("", "higher")
def delta1(p: Tensor, g: Tensor) -> Tensor:
    """Return share of pixels with max(p / g, g / p) < 1.25."""
    return _within(p, g, 1.25)


@register_metric("mm", "lower")
def rmse_mm(p: Tensor, g: Tensor) -> Tensor:
    """Return sqrt(mean((p - g)^2))."""
    return (p - g).square().mean().sqrt()


@register_metric("mm", "lower")
def mae_mm(p: Tensor, g: Tensor) -> Tensor:
    """Return mean(|p - g|)."""
    return (p - g).abs().mean()


@register_metric("mm", "lower")
def median_mm(p: Tensor, g: Tensor) -> Tensor:
    """Return median(|p - g|)."""
    error = (p - g).abs()
    return (error.median() - (-error).median()) / 2  # torch's is the lower of the middle two


@register_metric("", "higher")
def delta2(p: Tensor, g: Tensor) -> Tensor:
    """Return share of pixels with max(p / g, g / p) < 1.25^2."""
    return _within(p, g, 1.25**2)


@register_metric("", "higher")
def delta3(p: Tensor, g: Tensor) -> Tensor:
    """Return share of pixels with max(p / g, g / p) < 1.25^3."""
    return _within(p, g, 1.25**3)


@register_metric("mm", "lower")
def sq_rel_eigen_mm(p: Tensor, g: Tensor) -> Tensor:
    """Return mean((p - g)^2 / g); Eigen et al. 2014."""
    return ((p - g).square() / g).mean()


@register_metric("", "lower")
def sq_rel_kitti(p: Tensor, g: Tensor) -> Tensor:
    """Return mean((p - g)^2 / g^2); KITTI devkit."""
    return ((p - g) / g).square().mean()


@register_metric("", "lower")
def rmse_log(p: Tensor, g: Tensor) -> Tensor:
    """Return sqrt(mean(d^2))."""
    return _log_ratio(p, g).square().mean().sqrt()


@register_metric("", "lower")
def log10(p: Tensor, g: Tensor) -> Tensor:
    """Return mean(|log10 p - log10 g|)."""
    return _log_ratio(p, g).abs().mean() / math.log(10)


@register_metric("", "lower")
def silog_dav2(p: Tensor, g: Tensor) -> Tensor:
    """Return sqrt(mean(d^2) - 0.5 mean(d)^2); Depth Anything V2's."""
    d = _log_ratio(p, g)
    return (d.var(correction=0) + 0.5 * d.mean().square()).sqrt()


@register_metric("", "lower")
def silog_kitti(p: Tensor, g: Tensor) -> Tensor:
    """Return 100 sqrt(mean(d^2) - mean(d)^2); KITTI's, ZoeDepth's."""
    return 100 * _log_ratio(p, g).var(correction=0).sqrt()


@register_metric("1/km", "lower")
def irmse_per_km(p: Tensor, g: Tensor) -> Tensor:
    """Return sqrt(mean((1/p - 1/g)^2)), p and g in km."""
    return 1e6 * (1 / p - 1 / g).square().mean().sqrt()


def _within(p: Tensor, g: Tensor, factor: float) -> Tensor:
    return ((p / g).maximum(g / p) < factor).double().mean()


def _log_ratio(p: Tensor, g: Tensor) -> Tensor:
    return p.log() - g.log()


def image_metrics(pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> dict[str, float]:
    """Return every registered metric of one image; all of them NaN if no pixel is valid.

    pred_mm, depth_mm  (H, W) float mm, > 0 in the mask;  mask  (H, W) bool
    """
    return _pixel_metrics(pred_mm[mask].double(), depth_mm[mask].double())


def binned_metrics(
    pred_mm: Tensor,
    depth_mm: Tensor,
    mask: Tensor,
    edges_mm: Sequence[float] = BINS_MM,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the metrics of those names, by default every one, per depth range: "NAME@low-high".

    A range has the pixels whose ground truth lies in [low, high); the last one includes its upper
    end. Arguments as in `image_metrics`; edges_mm are the ends of the ranges, rising.
    """
    import torch

    p = pred_mm[mask].double()
    g = depth_mm[mask].double()
    edges = torch.tensor(edges_mm, dtype=torch.float64, device=g.device)
    bins = torch.bucketize(g, edges, right=True) - 1
    bins[g == edges_mm[-1]] = len(edges_mm) - 2
    found: dict[str, float] = {}
    for i, (low, high) in enumerate(pairwise(edges_mm)):
        values = _pixel_metrics(p[bins == i], g[bins == i], names)
        found |= {f"{name}@{low:g}-{high:g}": value for name, value in values.items()}
    return found


def _pixel_metrics(p: Tensor, g: Tensor, names: Sequence[str] | None = None) -> dict[str, float]:
    import torch

    chosen = list(PIXEL_METRICS) if names is None else names
    if not len(g):
        return dict.fromkeys(chosen, math.nan)
    values = torch.stack([FUNCTIONS[name](p, g) for name in chosen])
    return dict(zip(chosen, values.tolist()))


def bin_metrics(edges_mm: Sequence[float] = BINS_MM) -> dict[str, Metric]:
    """Return the metrics that `binned_metrics` computes, by name."""
    return metrics_by_name(
        metric._replace(
            name=f"{metric.name}@{low:g}-{high:g}",
            definition=f"{metric.definition}, over {low:g} <= g < {high:g} mm",
        )
        for low, high in pairwise(edges_mm)
        for metric in PIXEL_METRICS.values()
    )
