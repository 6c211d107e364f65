"""A model at work on one image: load it, predict depth in mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from depthdist.core.environment import pick_device
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.geometry.resampling import resize_rgb
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.models.refinement import average_with_mirror, refine
from depthdist.models.settings import REFINEMENTS, Refinement


class Predictor:
    """Depth in mm of pictures, on one device.

    way, flip  as --refine and --flip have them
    """

    def __init__(
        self,
        model: DepthModel,
        record: AdapterRecord,
        device: torch.device | str = "cpu",
        way: Refinement = "plain",
        flip: bool = False,
    ):
        assert way in REFINEMENTS, way
        self.model, self.record, self.device, self.way = (
            model.to(device),
            record,
            torch.device(device),
            way,
        )
        self.see = average_with_mirror(model) if flip else model

    @torch.no_grad()
    def __call__(self, pictures: list[InputImage]) -> list[np.ndarray]:
        """(H, W) float32 mm of each, at its own `size`."""
        smalls = [
            torch.from_numpy(
                resize_rgb(p.rgb, self.record.size)
                if p.rgb.shape[:2] != self.record.size
                else p.rgb
            )
            for p in pictures
        ]
        pred = self.see(torch.stack(smalls).to(self.device))  # (B, h, w)
        return [
            denormalize_depth(self._at_size(*one), self.record.bounds).cpu().numpy()
            for one in zip(pred, pictures)
        ]

    def _at_size(self, pred: torch.Tensor, picture: InputImage) -> torch.Tensor:
        if self.way == "plain":
            return self.model.upsampled(pred[None], picture.size)[0]
        assert picture.rgb.shape[:2] == picture.size, (
            "only the picture at its full size has more detail"
        )
        return refine(
            self.way,
            self.see,
            pred,
            torch.from_numpy(picture.rgb).to(self.device),
            self.model.upsampling,
        )


def devices() -> list[torch.device]:
    """Every GPU there is, or the CPU."""
    first = pick_device()
    return (
        [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        if first.type == "cuda"
        else [first]
    )


@dataclass
class InputImage:
    """One picture, and what is known of its depth.

    rgb       (h, w, 3) uint8: as it was taken or, from shards, as the network sees it
    size      (H, W) that depth is wanted at
    truth_mm  (H, W) float32 mm, NaN or 0 where nothing was measured; None where there is none
    rays      (H, W, 2) X / Z and Y / Z; None where the camera is not known
    note      why a truth that is there was not taken, "" where all is well
    """

    rgb: np.ndarray
    size: tuple[int, int]
    truth_mm: np.ndarray | None = None
    rays: np.ndarray | None = None
    note: str = ""
