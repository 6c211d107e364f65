"""Losses on normalised inverse depth: one registered function each, one number an image.

Every loss takes `pred`, `target` (B, H, W) float32 and `mask` (B, H, W) bool and returns (B,) float32. Per image first:
the mean over images is the caller's, so a batch cut into ranks or micro-batches gives the same number. All of them promise
0 on a perfect prediction and on an empty mask, and the same value whatever stands outside the mask, NaN included.

    parts = compute(LossSettings(), pred, target, mask)      # {"l1": (B,), "grad": (B,), "loss": (B,)}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6
LOSSES: dict[str, Callable[..., Tensor]] = {}


@dataclass(frozen=True)
class LossSettings:
    """Loss (on normalised inverse depth, at the truth's own resolution)"""

    loss: str = "l1=1,grad=3"
    "Which losses, each with its weight: NAME=WEIGHT with commas between."
    gamma: float = 10.0
    "Extra weight of the gradient loss where the truth has an edge: 1 + gamma."
    tau: float = 0.02
    "Step of the truth from one pixel to the next that counts as an edge, on the normalised scale (0..1)."

    def weights(self) -> dict[str, float]:
        """Weight by loss name; ValueError for an unknown name or a weight that is no number."""
        parsed = {}
        for item in self.loss.split(","):
            name, _, weight = item.partition("=")
            if name.strip() not in LOSSES:
                raise ValueError(f"--loss {self.loss}: {name.strip()!r} is not a loss; there are {', '.join(LOSSES)}")
            if name.strip() in parsed:
                raise ValueError(f"--loss {self.loss}: {name.strip()} stands there twice")
            try:
                parsed[name.strip()] = float(weight or 1)
                if not math.isfinite(parsed[name.strip()]):
                    raise ValueError
            except ValueError:
                raise ValueError(f"--loss {self.loss}: the weight of {name} is {weight!r}; expected a number") from None
        return parsed

    def problems(self) -> list[str]:
        found = []
        try:
            weights = self.weights().values()
            if min(weights) < 0 or not any(weights):
                found.append(f"--loss {self.loss}: every weight must be >= 0 and one above 0")
        except ValueError as err:
            found.append(str(err))
        found += [f"--{name} is {value}: expected >= 0" for name, value in (("gamma", self.gamma), ("tau", self.tau)) if not 0 <= value < math.inf]
        return found


def loss(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a loss function under the name that `--loss` uses."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        LOSSES[name] = function
        return function

    return register


@loss("l1")
def l1(pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings) -> Tensor:
    """Mean absolute difference over the mask: sum(M |d^ - d|) / (sum M + eps)."""
    difference = torch.where(mask, pred - target, 0.0).abs()
    return _masked_mean(difference, mask)


@loss("grad")
def grad(pred: Tensor, target: Tensor, mask: Tensor, settings: LossSettings) -> Tensor:
    """Mean absolute difference of the forward differences in x and in y, weighted 1 + gamma on the truth's edges.

    sum(|dx d^ - dx d| wx Mx) / (sum Mx + eps) + the same in y, with Mx = M[:, 1:] M[:, :-1] and wx = 1 + gamma [|dx d| > tau]
    (after Eigen & Fergus 2015 and MegaDepth, Li & Snavely 2018; the edge weight is the recipe's).
    """
    total = torch.zeros(pred.shape[0], dtype=torch.float32, device=pred.device)
    for axis in (-1, -2):
        length = pred.shape[axis] - 1
        both = mask.narrow(axis, 1, length) & mask.narrow(axis, 0, length)
        d_target = target.narrow(axis, 1, length) - target.narrow(axis, 0, length)
        d_pred = pred.narrow(axis, 1, length) - pred.narrow(axis, 0, length)
        weight = 1.0 + settings.gamma * (d_target.abs() > settings.tau)
        total = total + _masked_mean(torch.where(both, d_pred - d_target, 0.0).abs() * weight, both)
    return total


def compute(settings: LossSettings, pred: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Each named loss and their weighted sum "loss", (B,) float32 each. Inputs are raised to float32 first."""
    assert pred.shape == target.shape == mask.shape and mask.dtype == torch.bool, (pred.shape, target.shape, mask.shape, mask.dtype)
    pred, target = pred.float(), target.float()
    weights = settings.weights()
    parts = {name: LOSSES[name](pred, target, mask, settings) for name in weights}
    parts["loss"] = sum(weight * parts[name] for name, weight in weights.items())
    return parts


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.flatten(1).sum(1) / (mask.flatten(1).sum(1, dtype=torch.float32) + EPS)
