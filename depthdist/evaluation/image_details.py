"""What the headline numbers do not say of predictions: near and far apart, edges, surfaces,
grooves. One sample at a time.

    with Details(dataset, "val", bins_mm, limit_mm, workers=8) as look:
        # sample 3 of the split
        values, grooves = look(3, {"adapter": pred_mm}, depth_mm, mask).result()["adapter"]

It takes some seconds an image at full size, so images are measured side by side, in processes of
their own. All predictions of an image are measured together: what depends on its truth alone is
found once.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdist.data.dataset import Dataset
from depthdist.evaluation.metrics import edges, grooves, surfaces
from depthdist.evaluation.metrics import pixels as metrics
from depthdist.evaluation.metrics.grooves import Groove
from depthdist.evaluation.metrics.registry import BINS_MM, Metric
from depthdist.evaluation.scoring import ImageDetails
from depthdist.geometry.camera import pixel_rays
from depthdist.shards.decoding import decode_label

Array = np.ndarray


@dataclass
class DetailsPool:
    """bins_mm  ends of the depth ranges;  limit_mm  least tread depth.

     workers  processes, 0: one a core, 1: in this one

    flat  rows in which there is no edge to look for: of those only near and far apart
    """

    dataset: Dataset
    split: str
    bins_mm: tuple[float, ...]
    limit_mm: float
    workers: int = 1
    flat: Collection[str] = ()

    def __enter__(self) -> DetailsPool:
        workers = self.workers or len(os.sched_getaffinity(0))
        self.pool = (
            ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
            )
            if workers > 1
            else None
        )
        self.room = BoundedSemaphore(
            2 * workers
        )  # images that wait or are measured: their maps are large
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def __call__(
        self, sample: int, preds_mm: Mapping[str, Tensor], depth_mm: Tensor, mask: Tensor
    ) -> Future[ImageDetails]:
        """Of that sample of the split: its predictions by row, truth (H, W) mm, and mask."""
        maps = {row: pred_mm.float().cpu().numpy() for row, pred_mm in preds_mm.items()}
        job = (
            maps,
            depth_mm.cpu().numpy(),
            mask.cpu().numpy(),
            self.dataset.meta(self.split, sample),
            self.bins_mm,
            self.limit_mm,
            self.flat,
        )
        if not self.pool:
            future: Future[ImageDetails] = Future()
            future.set_result(measure(*job))
            return future
        self.room.acquire()
        future = self.pool.submit(measure, *job)
        future.add_done_callback(lambda _: self.room.release())
        return future


def measure(
    preds_mm: Mapping[str, Array],
    depth_mm: Array,
    mask: Array,
    meta: dict[str, Any],
    bins_mm: tuple[float, ...],
    limit_mm: float,
    flat: Collection[str] = (),
) -> ImageDetails:
    """All of `all_metrics` but those per pixel over the whole image, of one image, (H, W) each.

    meta  its meta.json; {} where there is none: then surfaces and grooves are NaN
    flat  as in Details
    """
    nothing = dict.fromkeys(
        [name for name in all_metrics(bins_mm) if name not in metrics.PIXEL_METRICS], math.nan
    )
    values = {
        row: (
            nothing
            | metrics.binned_metrics(
                *(torch.from_numpy(a) for a in (pred_mm, depth_mm, mask)), bins_mm
            )
        )
        for row, pred_mm in preds_mm.items()
    }
    rows = [row for row in preds_mm if row not in flat]
    found = {row: list[Groove]() for row in preds_mm}
    preds, truth, rays = (
        [preds_mm[row].astype(np.float64) for row in rows],
        depth_mm.astype(np.float64),
        pixel_rays(meta, mask.shape),
    )
    measured = [edges.edge_metrics(preds, truth, mask)] + (
        [surfaces.surface_metrics(preds, truth, mask, rays)] if rays is not None else []
    )
    for of_rows in measured:
        for row, more in zip(rows, of_rows):
            values[row] |= more
    if rays is not None and "grooves" in meta:
        together = grooves.groove_depths(decode_label(meta["grooves"]), mask, rays, truth, *preds)
        for k, row in enumerate(rows, start=1):
            found[row] = [
                replace(groove, depths=(groove.depths[0], groove.depths[k])) for groove in together
            ]
            values[row] |= grooves.groove_metrics(found[row], limit_mm)
    return {row: (values[row], found[row]) for row in preds_mm}


def all_metrics(bins_mm: tuple[float, ...] = BINS_MM) -> dict[str, Metric]:
    """Everything that an evaluation measures, by name."""
    return {
        **metrics.PIXEL_METRICS,
        **metrics.bin_metrics(bins_mm),
        **edges.EDGE_METRICS,
        **surfaces.SURFACE_METRICS,
        **grooves.GROOVE_METRICS,
    }
