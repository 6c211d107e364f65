"""What the precision that trains costs in mm: one validation sample beside float32.

check = Float32Check(model, loader.samples("val", [0]), depth_range)  # before the engine rounds
off_mm = check.difference_mm(engine.masters(), predict)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from depthdist.data.batch import Batch
from depthdist.evaluation.predictors import Predictor, network_predictor
from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
from depthdist.models.depth_model import DepthModel

LIMIT_MM = 1.0  # more than that is worth a warning


class Float32Check:
    """A float32 copy of the model, and one batch."""

    def __init__(self, model: DepthModel, batch: Batch, bounds: DepthRange):
        self.reference = copy.deepcopy(model).float().eval().to(batch.rgb.device)
        self.batch, self.bounds = batch, bounds
        _, self.mask = normalize_depth(batch.depth_mm, bounds, batch.mask)

    @torch.no_grad()
    def difference_mm(self, masters: Mapping[str, Tensor], predict: Predictor) -> float:
        """Return the largest difference in mm between `predict` and the same weights in float32.

        Over the valid pixels.
        """
        for name, parameter in self.reference.named_parameters():
            if name in masters:
                parameter.copy_(masters[name].view_as(parameter))
        exact = denormalize_depth(network_predictor(self.reference)(self.batch), self.bounds)
        off = (denormalize_depth(predict(self.batch), self.bounds) - exact)[self.mask]
        return float(off.abs().max()) if off.numel() else 0.0
