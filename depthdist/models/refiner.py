"""How predictions become sharper than plain upsampling: chosen once, used for every image.

    refiner = load_refiner(None, Path("runs/mine"))     # its detail stage, where it has one
    target = refiner(network, pred, image, bounds)      # (H, W), H and W of the image

`--refine` names a refinement; refinement.py and detail.py have what each does.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.resampling import upsample
from depthdist.models.detail import (
    DETAIL_FILE,
    Detail,
    load_detail,
    refine_by_detail,
)
from depthdist.models.refinement import Network, refine_by_guided_filter, refine_by_tiles
from depthdist.models.settings import Refinement
from depthdist.models.stage_files import find_stage

OTHER_WIDTH = 1.25  # times the width of the detail stage's training images, or a part of it


@dataclass(frozen=True)
class Refiner:
    """A refinement, with what it needs besides the model.

    refinement  its name
    detail      the detail stage, where that is the refinement
    folder      where the stage is
    """

    refinement: Refinement = "plain"
    detail: Detail | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.refinement} ({self.folder})" if self.folder else self.refinement

    def to(self, device: torch.device) -> Refiner:
        """Return the same refiner on a device; a detail stage is copied."""
        if self.detail is None:
            return self
        network = deepcopy(self.detail.network).to(device)
        return replace(self, detail=replace(self.detail, network=network))

    def width_remark(self, image: tuple[int, int]) -> str | None:
        """Return how far an image (H, W) is from what the detail stage saw, None if not far."""
        if self.detail is None:
            return None
        height, width = self.detail.record.camera
        if max(image[1] / width, width / image[1]) <= OTHER_WIDTH:
            return None
        return (
            f"{image[0]}x{image[1]} has another width than the training images of the detail stage"
            f" ({height}x{width}): grooves have another size in pixels than in training"
        )

    def __call__(
        self,
        network: Network,
        pred: Tensor,
        image: Tensor,
        bounds: DepthRange,
        upsampling: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> Tensor:
        """Return normalized inverse depth (H, W) at the size of `image` (H, W, 3) uint8.

        pred    (h, w): the network's prediction for the whole image, at its own size
        bounds  of the normalization
        """
        if self.refinement == "detail":
            assert self.detail is not None
            return refine_by_detail(self.detail, pred, image, bounds)
        if self.refinement == "guided":
            return refine_by_guided_filter(pred, image)
        whole = upsample(pred[None], (image.shape[0], image.shape[1]), upsampling)[0]
        if self.refinement == "tiles":
            return refine_by_tiles(network, whole, image, (pred.shape[0], pred.shape[1]))
        return whole


def load_refiner(refinement: Refinement | None, folder: Path) -> Refiner:
    """Return the refiner for the adapter of a run, or for an adapter's folder.

    refinement  None: detail where there is a detail stage, else plain
    raises ValueError: detail, and there is no stage, or it is damaged or of another adapter
    """
    adapter, stage = find_stage(folder, "detail")
    if refinement is None:
        refinement = "detail" if (stage / DETAIL_FILE).exists() else "plain"
    if refinement != "detail":
        return Refiner(refinement)
    return Refiner(refinement, load_detail(stage, adapter), stage)
