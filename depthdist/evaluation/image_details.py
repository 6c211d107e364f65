"""Metrics beyond the headline numbers: depth ranges, edges, surfaces, grooves. One image at a time.

    options = DetailOptions(bins_mm, limit_mm)
    with DetailsPool(dataset, "val", options, workers=8) as measure:
        # sample 3 of the split
        details = measure(3, {"adapter": pred_mm}, depth_mm, mask).result()["adapter"]

An image takes some seconds at full size, so images are measured in parallel, in processes of their
own. All predictions of an image are measured together: what depends on its ground truth only is
computed once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdist.data.dataset import Dataset
from depthdist.evaluation.metrics.edges import EDGE_METRICS, edge_metrics
from depthdist.evaluation.metrics.grooves import (
    GROOVE_METRICS,
    Groove,
    groove_depths,
    groove_metrics,
)
from depthdist.evaluation.metrics.pixels import PIXEL_METRICS, bin_metrics, binned_metrics
from depthdist.evaluation.metrics.registry import BINS_MM, Metric
from depthdist.evaluation.metrics.surfaces import SURFACE_METRICS, surface_metrics
from depthdist.evaluation.scoring import ImageDetails, RowDetails
from depthdist.evaluation.worker_pool import WorkerPool
from depthdist.geometry.camera import pixel_rays

Array = np.ndarray


@dataclass(frozen=True)
class DetailOptions:
    """What is measured.

    bins_mm    ends of the depth ranges
    limit_mm   least groove depth that still counts as good
    flat_rows  rows without edges to look for: only their depth ranges are measured
    """

    bins_mm: tuple[float, ...]
    limit_mm: float
    flat_rows: Collection[str] = ()


class ImageTruth(NamedTuple):
    """The ground truth of an image.

    depth_mm  (H, W) mm;  mask  (H, W) bool
    meta      its meta.json; {} where there is none: then surfaces and grooves are NaN
    label     (H, W) uint16, which groove is seen where; None without one
    """

    depth_mm: Array
    mask: Array
    meta: dict[str, Any]
    label: np.ndarray | None = None


class DetailsPool:
    """Measures images of a split, in worker processes or in this one.

    workers  processes, 0: one a core, 1: in this process
    """

    def __init__(self, dataset: Dataset, split: str, options: DetailOptions, workers: int = 1):
        self.dataset = dataset
        self.split = split
        self.options = options
        self.pool = WorkerPool(workers, dataset.count(split))

    def __enter__(self) -> DetailsPool:
        self.pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.__exit__(*error)

    def __call__(
        self, sample: int, preds_mm: Mapping[str, Tensor], depth_mm: Tensor, mask: Tensor
    ) -> Future[ImageDetails]:
        """Return the details of sample number `sample` of the split, as ImageMeasure describes."""
        preds = {row: pred_mm.float().cpu().numpy() for row, pred_mm in preds_mm.items()}
        meta = self.dataset.meta(self.split, sample)
        label = self.dataset.groove_label(self.split, sample)
        truth = ImageTruth(depth_mm.cpu().numpy(), mask.cpu().numpy(), meta, label)
        return self.pool.submit(measure_image, preds, truth, self.options)


def measure_image(
    preds_mm: Mapping[str, Array], truth: ImageTruth, options: DetailOptions
) -> ImageDetails:
    """Return all of `all_metrics` of one image by row, except those per pixel of the whole image.

    preds_mm  predictions (H, W) mm by row
    """
    nothing = {name: math.nan for name in all_metrics(options.bins_mm) if name not in PIXEL_METRICS}
    depth_mm = torch.from_numpy(truth.depth_mm)
    mask = torch.from_numpy(truth.mask)
    found: ImageDetails = {}
    for row, pred_mm in preds_mm.items():
        bins = binned_metrics(torch.from_numpy(pred_mm), depth_mm, mask, options.bins_mm)
        found[row] = RowDetails(nothing | bins, [])
    rows = [row for row in preds_mm if row not in options.flat_rows]
    preds = [preds_mm[row].astype(np.float64) for row in rows]
    for row, more in zip(rows, _measure_shapes(preds, truth, options.limit_mm)):
        found[row] = RowDetails(found[row].values | more.values, more.grooves)
    return found


def _measure_shapes(preds_mm: list[Array], truth: ImageTruth, limit_mm: float) -> list[RowDetails]:
    """Return edges, surfaces and grooves of each prediction, (H, W) float64 mm."""
    depth_mm = truth.depth_mm.astype(np.float64)
    found = [RowDetails(values, []) for values in edge_metrics(preds_mm, depth_mm, truth.mask)]
    rays = pixel_rays(truth.meta, truth.mask.shape)
    if rays is None:
        return found
    for details, values in zip(found, surface_metrics(preds_mm, depth_mm, truth.mask, rays)):
        details.values.update(values)
    if truth.label is None:
        return found
    measured = groove_depths(truth.label, truth.mask, rays, depth_mm, *preds_mm)
    for k, details in enumerate(found, start=1):
        details.grooves.extend(_depths_of_map(measured, k))
        details.values.update(groove_metrics(details.grooves, limit_mm))
    return found


def _depths_of_map(measured: list[Groove], k: int) -> list[Groove]:
    """Return the grooves with depths (truth, map k)."""
    return [replace(groove, depths=(groove.depths[0], groove.depths[k])) for groove in measured]


def all_metrics(bins_mm: tuple[float, ...] = BINS_MM) -> dict[str, Metric]:
    """Return every metric that an evaluation measures, by name."""
    return {
        **PIXEL_METRICS,
        **bin_metrics(bins_mm),
        **EDGE_METRICS,
        **SURFACE_METRICS,
        **GROOVE_METRICS,
    }
