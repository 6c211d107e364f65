"""The loss of the completion stage: depth in holes that were punched, and how sure it is.

With e = |log z^ - log z| / UNIT, z the depth that was measured before it was hidden:

    hole    mean of e where measured pixels were hidden
    spread  mean there of e / b + log b, b the network's own estimate of e: the negative
            log-likelihood of a Laplace distribution; e is given, only b learns from it
    kept    mean of e where measured pixels were shown: the network follows them up to a hole's rim

Where nothing at all was shown, there is nothing to complete: e is the prediction's own error, and b
alone learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depthdist.core.settings import range_problems


@dataclass(frozen=True)
class CompletionWeights:
    """Weights of the terms."""

    hole: float = 1.0
    spread: float = 0.3
    kept: float = 0.05

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        return range_problems(
            self, *((name, getattr(self, name) >= 0, ">= 0") for name in vars(self))
        )


def completion_losses(
    settings: CompletionWeights,
    log_depth: Tensor,
    spread: Tensor,
    log_pred: Tensor,
    depth_mm: Tensor,
    hole: Tensor,
    unit: float,
) -> dict[str, Tensor]:
    """Return each term and their weighted sum as `loss`, (B,) float32 each, of whole images.

    log_depth  (B, h, w) float32, natural logarithm of the completed depth in mm
    spread     (B, h, w) float32, natural logarithm of its expected error in units
    log_pred   (B, h, w) float32, natural logarithm of the adapter's depth
    depth_mm   (B, h, w) float32 measured depth, 0 where nothing was
    hole       (B, h, w) bool, measured pixels that were hidden
    unit       of the errors: natural logarithm of depth
    """
    measured = depth_mm > 0
    shown = measured & ~hole
    log_truth = torch.where(measured, depth_mm, 1.0).log()
    is_shown = shown.flatten(1).any(1)[:, None, None]
    says = torch.where(is_shown, log_depth, log_pred)
    error = (says - log_truth).abs() / unit
    terms = {
        "hole": _mean(error, hole),
        "spread": _mean(error.detach() * torch.exp(-spread) + spread, hole),
        "kept": _mean(error, shown),
    }
    total = torch.stack([getattr(settings, name) * term for name, term in terms.items()]).sum(0)
    return {**terms, "loss": total}


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean (B,) where it counts, 0 where nothing does; values are finite everywhere."""
    return (values * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)
