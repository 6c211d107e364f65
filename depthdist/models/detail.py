"""A trained detail stage: its file, the adapter it belongs to, and how it refines a prediction.

    detail = load_detail(run / "detail/best", adapter=run / "best")
    target = refine_by_detail(detail, pred, image, bounds)

stage_files.py has what its files are: detail.json holds a DetailRecord.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_valid
from depthdist.geometry.resampling import upsample
from depthdist.models.detail_network import DetailNetwork
from depthdist.models.half_precision import best_dtype
from depthdist.models.stage_files import load_stage

NAME = "detail"
DETAIL_FILE = "detail.json"
DETAIL_FOLDER = "detail/best"  # in a run's folder
LEAST_MM = 1.0  # a coarse depth is at least that: its logarithm is taken


@dataclass(frozen=True)
class DetailRecord:
    """What a detail stage needs besides its weights, and how it was trained.

    adapter    SHA-256 of the adapter's weights that it refines
    widths     channels of the network's scales
    camera     height and width of the images that it was trained on, pixels
    step       optimizer steps
    eval_loss  loss on validation crops, None without validation
    """

    adapter: str
    widths: tuple[int, ...]
    camera: tuple[int, int]
    step: int
    eval_loss: float | None = None


@dataclass(frozen=True)
class Detail:
    """A detail stage, ready to refine."""

    network: DetailNetwork
    record: DetailRecord


def load_detail(folder: Path, adapter: Path) -> Detail:
    """Return the detail stage in `folder` for the adapter in another.

    raises ValueError: none there, damaged, or trained on another adapter
    """
    return Detail(
        *load_stage(NAME, DetailRecord, _build, folder, adapter, without="--refine plain")
    )


def _build(record: DetailRecord) -> DetailNetwork:
    return DetailNetwork(record.widths)


def coarse_log(pred: Tensor, bounds: DepthRange) -> Tensor:
    """Return the natural logarithm of depth in mm of a normalized inverse depth."""
    return denormalize_depth(pred, bounds).clamp(min=LEAST_MM).log()


@torch.no_grad()
def refine_by_detail(
    detail: Detail,
    pred: Tensor,
    image: Tensor,
    bounds: DepthRange,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return `pred` at the size of `image`, with the relief that the image shows.

    pred     (h, w) normalized inverse depth of the whole image, the adapter's
    image    (H, W, 3) uint8
    dtype    what the network's inner layers compute in; by default `best_dtype`
    returns  (H, W) float32 normalized inverse depth
    """
    size = image.shape[0], image.shape[1]
    dtype = dtype or best_dtype(image.device)
    network = detail.network.to(image.device)
    with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        log_depth = network(image[None], coarse_log(upsample(pred[None], size), bounds))[0]
    return normalize_valid(log_depth.exp(), bounds)
