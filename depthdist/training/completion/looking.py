"""Looking at the completion stage: errors in punched holes, what sigma is, images of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdist.evaluation.figures import NEAR_TO_FAR
from depthdist.evaluation.metrics.sigma import shares_inside, sigma_scale
from depthdist.models.completion_maps import UNIT
from depthdist.training.completion.hole_batches import HoleBatch

MOST_PIXELS = 20_000  # of a sample; evenly spread
SIGMA_SHOWN = 0.1  # relative error that is drawn white
NAMES = ("mae_mm", "harmonic_mae_mm", "moved_mae_mm")


class HoleErrors:
    """Errors in punched holes, of validation samples that keep some measured pixels or none.

    filled, predicted  (N, 2) error in mm, and the network's own estimate of it
    """

    def __init__(self) -> None:
        self.filled: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.sums = np.zeros(len(NAMES) + 1)

    def add(self, batch: HoleBatch, log_depth: Tensor, spread: Tensor) -> None:
        """Count the samples of a batch."""
        for sample in range(len(batch)):
            hole = batch.hole[sample]
            truth = batch.depth_mm[sample][hole]
            is_shown = bool(((batch.depth_mm[sample] > 0) & ~hole).any())
            says = (log_depth if is_shown else batch.log_pred)[sample][hole].exp()
            guesses = batch.guesses[sample][:, hole].exp()
            errors = (torch.stack([says, guesses[0], guesses[1]]) - truth).abs().double()
            estimate = UNIT * spread[sample][hole].exp() * says
            kept = torch.stack([errors[0], estimate.double()], 1).cpu().numpy()
            kept = kept[:: max(1, len(kept) // MOST_PIXELS)]
            (self.filled if is_shown else self.predicted).append(kept)
            if is_shown:
                self.sums += [*errors.sum(1).tolist(), len(truth)]

    def of_all(self, gather: Callable[[Any], list[Any]]) -> HoleErrors:
        """Return the errors of all ranks' samples."""
        everyone = gather((self.filled, self.predicted, self.sums))
        whole = HoleErrors()
        whole.filled = [kept for filled, _, _ in everyone for kept in filled]
        whole.predicted = [kept for _, predicted, _ in everyone for kept in predicted]
        whole.sums = np.sum([sums for _, _, sums in everyone], axis=0)
        return whole

    def means_mm(self) -> dict[str, float]:
        """Return the mean absolute errors in holes: the network's, and those of two guesses."""
        *sums, count = self.sums
        return {name: float(total / max(count, 1)) for name, total in zip(NAMES, sums)}

    def scales(self) -> tuple[float, float]:
        """Return what the network's estimates are multiplied by: of filled, of predicted pixels."""
        filled, predicted = (_columns(kept) for kept in (self.filled, self.predicted))
        return sigma_scale(*filled), sigma_scale(*predicted)

    def shares_inside(self) -> dict[str, float]:
        """Return the shares of filled pixels within 1 and 2 sigma, 0 where there are none."""
        errors, estimates = _columns(self.filled)
        scale = sigma_scale(errors, estimates)
        shares = shares_inside(errors, scale * estimates) if len(errors) else (0.0, 0.0)
        return dict(zip(("inside_1_sigma", "inside_2_sigma"), shares))


def _columns(kept: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.concatenate(kept) if kept else np.zeros((0, 2))
    return pixels[:, 0], pixels[:, 1]


def draw_sample(rgb: np.ndarray, batch: HoleBatch, log_depth: Tensor, spread: Tensor) -> np.ndarray:
    """Return the image of a batch's first sample (h, 5 w, 3) uint8.

    The image, brightened; the depth that is shown; the completed depth; all that was measured; and
    the expected error, white at 10 %.
    """
    depth_mm, hole = (tensor[0].cpu().numpy() for tensor in (batch.depth_mm, batch.hole))
    measured = depth_mm > 0
    low, high = np.percentile(depth_mm[measured], [1, 99]) if measured.any() else (0.0, 1.0)

    def colored(depth: np.ndarray, where: np.ndarray) -> np.ndarray:
        scaled = np.clip((depth - low) / max(high - low, 1.0), 0, 1)
        return NEAR_TO_FAR(np.where(where, scaled, np.nan), bytes=True)[..., :3]

    completed = log_depth[0].float().exp().cpu().numpy()
    error = UNIT * spread[0].float().exp().cpu().numpy() / SIGMA_SHOWN
    grey = np.repeat((255 * np.clip(error, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    bright = np.clip(rgb.astype(np.float32) * 2, 0, 255).astype(np.uint8)
    everywhere = np.ones_like(measured)
    shown = [
        bright,
        colored(depth_mm, measured & ~hole),
        colored(completed, everywhere),
        colored(depth_mm, measured),
        grey,
    ]
    return np.concatenate(shown, axis=1)
