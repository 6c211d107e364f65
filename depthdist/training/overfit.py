"""Captures learned by heart (--overfit): is the goal reached, or which part does not learn.

The goal is one of the median pixel, not of the RMSE: most of that comes from a few pixels at
silhouettes, which a frozen decoder cannot draw sharply, and says nothing of the wiring.

    for line in describe_fit(best_reached(run, best)):
        print(line)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdist.data.batch import Batch
from depthdist.evaluation.predictors import network_predictor
from depthdist.evaluation.verdict import FELL, still_falls
from depthdist.geometry.depth_range import normalize_depth
from depthdist.models.depth_model import DepthModel
from depthdist.training.parts import Run
from depthdist.training.validation import score_validation

GOAL_MM = 5.0  # median error


class Fit(NamedTuple):
    """How well a run knows the captures that it learned by heart; errors are medians, mm.

    num            captures
    error_mm       of the best adapter, and rmse_mm its RMSE
    aligned_mm     after the scale and shift of 1/depth that fit each capture best
    at_best_mm     of the truth itself, at the network's size and back
    size           of the network's images
    losses         eval loss of every evaluation, the first before training
    is_frozen      whether the decoder is frozen
    lr, epochs     as set
    """

    num: int
    error_mm: float
    rmse_mm: float
    aligned_mm: float
    at_best_mm: float
    size: str
    losses: Sequence[float]
    is_frozen: bool
    lr: float
    epochs: int


def is_learned(scores: dict[str, float]) -> bool:
    """Return whether the mean scores of the captures reach the goal."""
    return scores["median_mm"] < GOAL_MM


def describe_fit(fit: Fit) -> list[str]:
    """Return whether the goal is reached and, if not, which part does not learn, a line each."""
    captures = f"{fit.num} capture{'s' if fit.num > 1 else ''}"
    found = (
        f"overfit      {captures}: half of the pixels within {fit.error_mm:.1f} mm, goal"
        f" {GOAL_MM:g} mm (RMSE {fit.rmse_mm:.1f} mm; the truth itself at {fit.size} and back:"
        f" {fit.at_best_mm:.1f} mm)"
    )
    if fit.error_mm < GOAL_MM:
        meaning = "data, loss, gradient and adapter work together: what new captures lack is data"
    else:
        meaning = f"what does not learn: {_weak_part(fit)}"
    return [found, f"overfit      {meaning}"]


def _weak_part(fit: Fit) -> str:
    """Return the part that kept the captures from being learned, and what to try."""
    if fit.at_best_mm >= GOAL_MM:
        return f"the image size: {fit.size} cannot hold these depths; take a larger --size"
    fell = 1 - min(fit.losses) / fit.losses[0]
    if fell < FELL:
        return (
            f"the adapter: the eval loss fell by {fell:.1%}; see that train/grad_norm is above 0,"
            f" and raise --lr, {fit.lr:g} now"
        )
    if still_falls(fit.losses):
        return (
            "nothing, it is still learning as the run ends: more --epochs than"
            f" {fit.epochs}, or a higher --lr than {fit.lr:g}"
        )
    if fit.aligned_mm < GOAL_MM:
        return (
            f"scale and shift alone (with those of the truth {fit.aligned_mm:.1f} mm): leave out"
            " --no-calibrate and --recipe document, or take --decoder trained"
        )
    if fit.is_frozen:
        return "the frozen decoder, or too few LoRA layers: try --lora linear or --decoder trained"
    return (
        "the network: this base model is too small for them, or two captures contradict each other"
        " (the same image, other depths): try --overfit 1"
    )


def best_reached(run: Run, best: DepthModel) -> Fit:
    """Return how well the best adapter knows the captures. Every rank must call it."""
    settings = run.settings
    own = score_validation(run, network_predictor(best), ("none", "disparity"))
    scores, aligned = own["none"].means(), own["disparity"].means()
    at_best = score_validation(run, lambda batch: _truth_through_network(run, batch))["none"]
    return Fit(
        num=settings.train.overfit,
        error_mm=scores["median_mm"],
        rmse_mm=scores["rmse_mm"],
        aligned_mm=aligned["median_mm"],
        at_best_mm=at_best.means()["median_mm"],
        size=str(run.data.dataset.size),
        losses=run.state.losses,
        is_frozen=settings.lora.decoder == "frozen" and not best.fresh_decoder,
        lr=settings.train.lr,
        epochs=settings.train.epochs,
    )


def _truth_through_network(run: Run, batch: Batch) -> Tensor:
    """Return the targets (B, H, W) as a perfect network would give them: through its own size."""
    target, mask = normalize_depth(batch.depth_mm, run.data.depth_range, batch.mask)
    small = shrink(target, mask, run.data.dataset.size)
    return run.learner.model.upsampled(small, target.shape[-2:])


def shrink(target: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, h, w), the mean of the valid pixels in each pixel's area; 0 where none is valid.

    target  (B, H, W), 0 outside the mask;  mask  (B, H, W) bool;  size  (h, w)
    """
    both = torch.stack([target, mask.float()], dim=1)  # (B, 2, H, W)
    mean, share = F.interpolate(both, size=size, mode="area").unbind(1)
    return mean / share.clamp(min=1e-6)
