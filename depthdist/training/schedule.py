"""How a run goes along its length: the learning rate of each step, what counts as better, when to
stop, and averaged weights.

schedule = ScheduleSettings(warmup=10)
lr = settings.lr * rate(schedule, step, total)
if better(schedule.best_by, scores["abs_rel"], best): ...
ema = Ema(0.99); ema.update(masters); evaluate(ema.weights)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from depthdist.core.settings import did_you_mean
from depthdist.evaluation.metrics.pixels import PIXEL_METRICS


@dataclass(frozen=True)
class ScheduleSettings:
    """Schedule"""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes from --lr to the end of the run: in a line to 0, along half a
    cosine to 0, or not at all."""
    warmup: int = 0
    "Optimizer steps in which the learning rate first rises to --lr."
    patience: int = 0
    "Stop early after so many epochs without a new best; 0: never."
    best_by: str = "loss"
    "What decides which epoch is the best, and early stopping: loss, or a metric such as abs_rel."
    ema: float = 0.0
    """Decay of an exponential moving average of the trained weights, which is then what is
    evaluated and kept; 0: off. 0.9 averages about 10 steps."""

    def problems(self) -> list[str]:
        found = [
            f"--{name} is {getattr(self, name)}: expected >= 0"
            for name in ("warmup", "patience")
            if getattr(self, name) < 0
        ]
        if not 0 <= self.ema < 1:
            found.append(f"--ema is {self.ema}: expected 0 (off) or a decay below 1, such as 0.99")
        names = ["loss", *PIXEL_METRICS]
        if self.best_by not in names:
            found.append(
                f"--best-by is {self.best_by!r}: expected one of"
                f" {', '.join(names)}{did_you_mean(self.best_by, names)}"
            )
        return found


def lr_factor(settings: ScheduleSettings, step: int, total: int) -> float:
    """What --lr is multiplied by at a step, counted from 0, of a run of `total` optimizer steps.

    In 0..1, also after its end.

    Warm-up of w steps: (step + 1) / (w + 1), so that no step is lost at 0 and step w has the whole
    rate (Goyal et al., 2017). Then with t = (step - w) / (total - w):
        linear    1 - t, the recipe's 1 - step / total where w = 0
        cosine    (1 + cos(pi t)) / 2 (Loshchilov & Hutter, 2017, without restarts)
        constant  1
    """
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    t = min(1.0, (step - settings.warmup) / max(1, total - settings.warmup))
    return {"linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2, "constant": 1.0}[
        settings.schedule
    ]


def is_better(name: str, new: float, old: float | None) -> bool:
    """Whether the score `new`, of loss or a metric, is better than the best so far (None: there is
    none). What is not finite never is.
    """
    higher = name != "loss" and PIXEL_METRICS[name].better == "higher"
    return math.isfinite(new) and (old is None or (new > old if higher else new < old))


class Ema:
    """Average of the weights seen so far, the latest with the most weight, each earlier one with
    `decay` times that of the next.

    After n updates    weights = sum(decay^(n - i) x_i) / sum(decay^(n - i)),  i = 1..n

    This is Adam's bias correction (Kingma & Ba, 2015, section 3): the first average is the first
    weights themselves, and the untrained start, which a run of 90 steps at decay 0.999 would keep
    by 91 %, is not in it.
    """

    def __init__(self, decay: float):
        assert 0 < decay < 1, decay
        self.decay, self.updates, self.weights = decay, 0, {}

    @torch.no_grad()
    def update(self, masters: Mapping[str, Tensor]) -> None:
        """Take in the weights, by name, after an optimizer step."""
        self.updates += 1
        share = (1 - self.decay) / (1 - self.decay**self.updates)  # of the newest
        if not self.weights:
            self.weights = {name: x.detach().clone() for name, x in masters.items()}
        assert masters.keys() == self.weights.keys(), masters.keys() ^ self.weights.keys()
        for name, x in masters.items():
            self.weights[name] = self.weights[name].to(x.device).lerp_(x, share)

    def state(self) -> dict[str, Tensor]:
        """All that `load` needs, to go on bit for bit: the averages by name, and how many updates
        made them.
        """
        return {**self.weights, "updates": torch.tensor(self.updates)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.updates = int(state["updates"])
        self.weights = {name: x.clone() for name, x in state.items() if name != "updates"}
