"""The settings of the detail stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.settings import range_problems

MAX_STEPS = 2**40
MULTIPLE = 32  # of the network: models/detail_network.py


@dataclass(frozen=True)
class DetailSettings:
    """Detail (second stage: relief from the image at its full size)."""

    detail: bool = False
    """After the adapter, or on a run that has one, train the detail stage in RUN/detail: grooves
    and contours that the network's image size loses. Needs images at the camera's size: captures,
    shards made with --rgb-size camera, or --raw."""
    raw: Path | None = None
    """Folder of the captures that --data was sharded from, for --detail where the shards hold
    small images."""
    detail_steps: int = 6000
    "Optimizer steps of the detail stage."
    detail_crops: int = 8
    "Crops of one optimizer step over all ranks."
    detail_crop: int = 256
    "Height and width of a crop, pixels, a multiple of 32."
    detail_lr: float = 2e-3
    "Highest learning rate of the detail stage: 50 steps up, then half a cosine down to 2 %."
    detail_folds: int = 2
    """The stage learns on predictions of images that an adapter has not seen: so many adapters are
    trained, each without one of so many parts of the training images. 0: predictions of the run's
    own adapter, which has seen them; right where it saw very many images."""
    detail_memory: int = 4000
    "MB a rank that decoded images may take."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        side = self.detail_crop
        return range_problems(
            self,
            ("detail_steps", 1 <= self.detail_steps < MAX_STEPS, ">= 1"),
            ("detail_crops", 1 <= self.detail_crops < MAX_STEPS, ">= 1"),
            (
                "detail_crop",
                2 * MULTIPLE <= side <= 4096 and side % MULTIPLE == 0,
                f"a multiple of {MULTIPLE} from {2 * MULTIPLE}",
            ),
            ("detail_lr", 0 < self.detail_lr < math.inf, "> 0"),
            (
                "detail_folds",
                0 <= self.detail_folds <= 100 and self.detail_folds != 1,
                "0, or >= 2",
            ),
            ("detail_memory", self.detail_memory >= 1, ">= 1 MB"),
        )
