"""What the headline numbers do not say of a prediction: near and far apart, edges, surfaces, grooves. One sample at a time.

    with Details(dataset, "val", bins_mm, limit_mm, workers=8) as look:
        values, grooves = look(3, pred_mm, depth_mm, mask).result()       # sample 3 of the split

It takes some seconds an image at full size, so images are measured side by side, in processes of their own.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdist import edges, grooves, metrics, surfaces
from depthdist.dataset import Dataset
from depthdist.grooves import Groove
from depthdist.metrics import Metric
from depthdist.shards.codec import decode_label

Found = tuple[dict[str, float], list[Groove]]


@dataclass
class Details:
    """bins_mm  ends of the depth ranges;  limit_mm  least tread depth;  workers  processes, 0: one a core, 1: in this one"""

    dataset: Dataset
    split: str
    bins_mm: tuple[float, ...]
    limit_mm: float
    workers: int = 1

    def __enter__(self) -> Details:
        workers = self.workers or len(os.sched_getaffinity(0))
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) if workers > 1 else None
        self.room = BoundedSemaphore(2 * workers)  # images that wait or are measured: their maps are large
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, sample: int, pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> Future[Found]:
        """Values by name, NaN where there is nothing to say, and the grooves' depths (truth, prediction)."""
        job = (*(t.cpu().numpy() for t in (pred_mm.float(), depth_mm, mask)), self.dataset.meta(self.split, sample), self.bins_mm, self.limit_mm)
        if not self.pool:
            return _done(measure(*job))
        self.room.acquire()
        future = self.pool.submit(measure, *job)
        future.add_done_callback(lambda _: self.room.release())
        return future


    def ranges(self, sample: int, pred_mm: Tensor, depth_mm: Tensor, mask: Tensor) -> Future[Found]:
        """Near and far apart alone, the rest NaN: for rows in which there is no edge to look for."""
        return _done((_nothing(self.bins_mm) | metrics.binned(pred_mm, depth_mm, mask, self.bins_mm), []))


def _done(found: Found) -> Future[Found]:
    future: Future[Found] = Future()
    future.set_result(found)
    return future


def _nothing(bins_mm: tuple[float, ...]) -> dict[str, float]:
    return dict.fromkeys([name for name in all_metrics(bins_mm) if name not in metrics.METRICS], math.nan)


def measure(pred_mm: np.ndarray, depth_mm: np.ndarray, mask: np.ndarray, meta: dict[str, Any], bins_mm: tuple[float, ...], limit_mm: float) -> Found:
    """All of `all_metrics` but those per pixel over the whole image, of one image, (H, W) each.

    meta  its meta.json; {} where there is none: then surfaces and grooves are NaN
    """
    found: list[Groove] = []
    values = _nothing(bins_mm) | metrics.binned(*(torch.from_numpy(a) for a in (pred_mm, depth_mm, mask)), bins_mm)
    p, g = pred_mm.astype(np.float64), depth_mm.astype(np.float64)
    values |= edges.edge_metrics(p, g, mask)
    rays = surfaces.pixel_rays(meta, mask.shape)
    if rays is not None:
        values |= surfaces.surface_metrics(p, g, mask, rays)
        if "grooves" in meta:
            found = grooves.groove_depths(decode_label(meta["grooves"]), mask, rays, g, p)
            values |= grooves.groove_metrics(found, limit_mm)
    return values, found


def all_metrics(bins_mm: tuple[float, ...] = metrics.BINS_MM) -> dict[str, Metric]:
    """Everything that an evaluation measures, by name."""
    return {**metrics.METRICS, **metrics.bin_metrics(bins_mm), **edges.METRICS, **surfaces.METRICS, **grooves.METRICS}
