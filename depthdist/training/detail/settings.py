"""The settings of the detail stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    detail_steps: int = 6000
    "Optimizer steps of the detail stage."
    detail_crops: int = 8
    "Crops of one optimizer step over all ranks."
    detail_crop: int = 256
    "Height and width of a crop, pixels, a multiple of 32."
    detail_lr: float = 2e-3
    "Highest learning rate of the detail stage: 50 steps up, then half a cosine down to 2 %."

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
        )
