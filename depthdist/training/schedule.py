"""How a run goes along its length: the learning rate of each step, and what counts as better.

schedule = ScheduleSettings(warmup=10)
lr = settings.lr * lr_factor(schedule, step, total)
if is_better(schedule.best_by, scores["abs_rel"], best): ...
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from depthdist.core.settings import did_you_mean, range_problems


@dataclass(frozen=True)
class ScheduleSettings:
    """Schedule."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes from --lr to the end of the run: in a line to 0, along half a
    cosine to 0, or not at all."""
    warmup: int = 0
    "Optimizer steps in which the learning rate first rises to --lr."
    patience: int = 0
    "Stop early after so many epochs without a new best; 0: never."
    best_by: str = "loss"
    "What decides which epoch is the best, and early stopping: loss, or a metric such as abs_rel."
    val_images: int = 5000
    """Validation images that each evaluation while training, and the final table, score: evenly
    spread, the same ones every time; 0: all. `depthdist evaluate` scores all."""
    ema: float = 0.0
    """Decay of an exponential moving average of the trained weights, which is then what is
    evaluated and kept; 0: off. 0.9 averages about 10 steps."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        found = range_problems(
            self,
            ("warmup", self.warmup >= 0, ">= 0"),
            ("patience", self.patience >= 0, ">= 0"),
            ("val_images", self.val_images >= 0, ">= 0"),
            ("ema", 0 <= self.ema < 1, "0 (off) or a decay below 1, such as 0.99"),
        )
        return found + self._problems_of_best_by()

    def _problems_of_best_by(self) -> list[str]:
        if self.best_by == "loss":
            return []
        from depthdist.evaluation.metrics.pixels import PIXEL_METRICS  # torch is imported only here

        names = ["loss", *PIXEL_METRICS]
        if self.best_by in names:
            return []
        return [
            f"--best-by is {self.best_by!r}: expected one of"
            f" {', '.join(names)}{did_you_mean(self.best_by, names)}"
        ]


def lr_factor(settings: ScheduleSettings, step: int, total: int) -> float:
    """Return what --lr is multiplied by at a step, counted from 0, of `total` optimizer steps.

    It is in 0..1, also after the end of the run.

    Warm-up of w steps: (step + 1) / (w + 1), so that no step is lost at 0 and step w has the whole
    rate (Goyal et al., 2017). Then with t = (step - w) / (total - w):
        linear    1 - t, the recipe's 1 - step / total where w = 0
        cosine    (1 + cos(pi t)) / 2 (Loshchilov & Hutter, 2017, without restarts)
        constant  1
    """
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    t = min(1.0, (step - settings.warmup) / max(1, total - settings.warmup))
    if settings.schedule == "linear":
        return 1 - t
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * t)) / 2
    return 1.0


def is_better(name: str, new: float, old: float | None) -> bool:
    """Return whether the score `new`, of loss or a metric, is better than the best so far.

    old  None where there is none yet
    A score that is not finite is never better.
    """
    if not math.isfinite(new):
        return False
    return old is None or (new > old if _higher_is_better(name) else new < old)


def _higher_is_better(name: str) -> bool:
    if name == "loss":
        return False
    from depthdist.evaluation.metrics.pixels import PIXEL_METRICS

    return PIXEL_METRICS[name].better == "higher"
