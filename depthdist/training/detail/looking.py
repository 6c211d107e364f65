"""Looking at the detail stage: how its relief follows the camera's, images of crops, the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from depthdist.data.loader import Loader
from depthdist.distributed.process_group import World, gather_from_all_ranks
from depthdist.evaluation.predictors import network_predictor, refined_predictor
from depthdist.evaluation.row_kinds import RowKind
from depthdist.evaluation.scoring import Row, mean_scores
from depthdist.models.adapter import load_adapter
from depthdist.models.refiner import load_refiner
from depthdist.training.detail.crop_batches import CropBatch, CropReader
from depthdist.training.settings import Settings

WINDOW = 31  # pixels a side: relief is depth less its mean over such a square
SILHOUETTE_MM = 20.0  # a square with such a range within 7 pixels shows no relief alone
SHOWN_MM = 8.0  # relief from black to white


class ReliefSums:
    """Sums of a straight line from the camera's relief to the predicted one."""

    def __init__(self) -> None:
        self.sums = np.zeros(6)

    def add(self, batch: CropBatch, log_depth: Tensor) -> None:
        """Count the pixels of crops whose surroundings are measured and have no silhouette."""
        where = undisturbed(batch.depth_mm, batch.mask)
        t = relief(batch.depth_mm)[where].double().cpu().numpy()
        p = relief(torch.exp(log_depth))[where].double().cpu().numpy()
        self.sums += [len(t), t.sum(), p.sum(), t @ t, t @ p, p @ p]

    def fit(self, gather: Callable[[Any], list[Any]]) -> tuple[float, float]:
        """Return slope and correlation over all ranks, 0 where nothing was counted."""
        num, t, p, tt, tp, pp = np.sum(gather(self.sums), axis=0)
        if num < 2:
            return 0.0, 0.0
        tt, tp, pp = tt - t * t / num, tp - t * p / num, pp - p * p / num
        if tt <= 0 or pp <= 0:
            return 0.0, 0.0
        return float(tp / tt), float(tp / np.sqrt(tt * pp))


def relief(depth_mm: Tensor) -> Tensor:
    """Return depth less its mean over WINDOW pixels, (B, H, W)."""
    mean = F.avg_pool2d(depth_mm[:, None], WINDOW, 1, WINDOW // 2, count_include_pad=False)
    return depth_mm - mean[:, 0]


def undisturbed(depth_mm: Tensor, mask: Tensor) -> Tensor:
    """Return where all of the window is measured, without a silhouette in it, (B, H, W) bool."""
    z = depth_mm[:, None]
    span = F.max_pool2d(z, 7, 1, 3) + F.max_pool2d(-z, 7, 1, 3)
    bad = ((span > SILHOUETTE_MM) | ~mask[:, None]).float()
    return F.max_pool2d(bad, WINDOW, 1, WINDOW // 2)[:, 0] == 0


def draw_crop(batch: CropBatch, log_depth: Tensor) -> np.ndarray:
    """Return the image of a batch's first crop (S, 4 S, 3) uint8.

    The image, brightened; the relief of the camera's depth, of the coarse and of the refined one.
    """
    rgb = np.clip(batch.rgb[0].cpu().numpy().astype(np.float32) * 2, 0, 255).astype(np.uint8)
    coarse = torch.exp(batch.coarse_log)
    mask = batch.mask[:1]
    filled = torch.where(mask, batch.depth_mm[:1], coarse[:1])
    shown = [rgb]
    for depth_mm in (filled, coarse[:1], torch.exp(log_depth)[:1]):
        grey = 127.5 + relief(depth_mm)[0] * (127.5 / SHOWN_MM)
        pixels = grey.clamp(0, 255).to(torch.uint8).cpu().numpy()
        shown.append(np.repeat(pixels[..., None], 3, axis=2))
    shown[1][~mask[0].cpu().numpy()] = (60, 0, 0)
    return np.concatenate(shown, axis=1)


def final_scores(
    crops: CropReader, run: Path, settings: Settings, world: World
) -> dict[str, dict[str, float]]:
    """Return the mean scores of whole validation images by the adapter, alone and with the stage.

    Nothing where there are none. Every rank calls it and takes its part.
    """
    dataset = crops.reader.dataset
    if not dataset.has("val"):
        return {}
    model, record = load_adapter(run / "best")
    model.to(world.device).eval()
    refiner = load_refiner("detail", run).to(world.device)
    refined = refined_predictor(model, refiner, record.bounds, crops.reader, "val")
    rows = {
        "best adapter": Row(network_predictor(model), RowKind.ADAPTER),
        "best adapter + detail": Row(refined, RowKind.ADAPTER_REFINED),
    }
    loader = Loader(dataset, settings.data, device=world.device)
    found = mean_scores(
        rows,
        loader.evaluate("val", 1, world.rank, world.size),
        num_samples=dataset.count("val"),
        bounds=record.bounds,
        loss=settings.loss,
        device=world.device,
        gather=gather_from_all_ranks,
    )
    return {name: scores.means() for name, scores in found.items()}
