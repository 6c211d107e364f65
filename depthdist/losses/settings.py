"""The settings of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_LOSS = "l1=1,grad=3"
DEFAULT_NAMES = tuple(item.partition("=")[0] for item in DEFAULT_LOSS.split(","))
NEEDS_MILLIMETERS = ("grad_mm", "grad_trusted", "silog")  # these have no meaning for relative depth


@dataclass(frozen=True)
class LossSettings:
    """Loss (on normalized inverse depth, at the ground truth's resolution)."""

    loss: str = DEFAULT_LOSS
    """Losses and their weights: NAME=WEIGHT, separated by commas. An unknown name, such as list,
    prints the available ones."""
    gamma: float = 10.0
    """grad, grad_mm, grad_trusted: extra weight at the ground truth's edges, whose weight is 1 +
    gamma."""
    tau: float = 0.02
    """grad: difference of the ground truth between neighboring pixels that counts as an edge, on
    the normalized scale (0..1)."""
    tau_mm: float = 4.0
    """grad_mm, grad_trusted: difference of the ground truth between neighboring pixels that counts
    as an edge, mm of depth."""
    trusted_radius: int = 2
    """grad_trusted: an edge counts only where all pixels up to this many rows and columns away
    were measured."""
    scales: int = 4
    """multiscale: number of scales; each takes every second pixel of the one before."""
    silog_lambda: float = 0.5
    """silog: share of the mean log ratio that is ignored. 0: none. 1: all, so that depth has to be
    right only up to a factor."""
    relative: bool = False
    """Learn relative depth: the ground truth of each image is mapped to one range, 1 to 9, whatever
    its scale and shift. For pretraining; use l1 and multiscale."""

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss by name.

        Raises ValueError for an unknown or repeated name and for a weight that is not a number.
        """
        parsed: dict[str, float] = {}
        for item in self.loss.split(","):
            name, _, text = item.partition("=")
            name = name.strip()
            if not _is_registered(name):
                raise ValueError(
                    f"--loss {self.loss}: {name!r} is not a loss; there are"
                    f" {', '.join(_registered_names())}"
                )
            if name in parsed:
                raise ValueError(f"--loss {self.loss}: {name} appears twice")
            parsed[name] = self._parse_weight(name, text)
        return parsed

    def _parse_weight(self, name: str, text: str) -> float:
        try:
            weight = float(text or 1)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise ValueError(
                f"--loss {self.loss}: the weight of {name} is {text!r}; expected a number"
            )
        return weight

    def problems(self) -> list[str]:
        """List what is wrong with the values."""
        found = self._loss_problems()
        for name, is_valid, expected in (
            ("gamma", 0 <= self.gamma < math.inf, ">= 0"),
            ("tau", 0 <= self.tau < math.inf, ">= 0"),
            ("tau_mm", 0 <= self.tau_mm < math.inf, ">= 0"),
            ("trusted_radius", 0 <= self.trusted_radius <= 64, "0 to 64"),
            ("scales", 1 <= self.scales <= 16, "1 to 16"),
            ("silog_lambda", 0 <= self.silog_lambda <= 1, "0 to 1"),
        ):
            if not is_valid:
                flag = name.replace("_", "-")
                found.append(f"--{flag} is {getattr(self, name)}: expected {expected}")
        return found

    def _loss_problems(self) -> list[str]:
        try:
            weights = self.weights()
        except ValueError as err:
            return [str(err)]
        found = []
        if min(weights.values()) < 0 or not any(weights.values()):
            found.append(f"--loss {self.loss}: every weight must be >= 0 and one above 0")
        metric = sorted(weights.keys() & set(NEEDS_MILLIMETERS))
        if self.relative and metric:
            found.append(
                f"--relative and --loss {self.loss}: {', '.join(metric)} need millimetres,"
                " which relative depth does not have; expected other losses"
            )
        return found


def _registered_names() -> list[str]:
    """Return the names of all losses; imports them, and torch with them."""
    from depthdist.losses.terms import LOSSES

    return list(LOSSES)


def _is_registered(name: str) -> bool:
    """Return whether there is a loss of that name; does not import torch for the default ones."""
    return name in DEFAULT_NAMES or name in _registered_names()
