"""An exponential moving average of the trained weights (--ema)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """Average of the weights seen so far, each with `decay` times the weight of the next one.

        ema = Ema(0.99)
        ema.update(masters)
        evaluate(ema.weights)

    After n updates    weights = sum(decay^(n - i) x_i) / sum(decay^(n - i)),  i = 1..n

    This is Adam's bias correction (Kingma & Ba, 2015, section 3): the first average is the first
    weights themselves, and the untrained start, which a run of 90 steps at decay 0.999 would keep
    by 91 %, is not in it.
    """

    def __init__(self, decay: float):
        assert 0 < decay < 1, decay
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {}

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
        """Return what `load` needs to resume bit for bit: averages and the number of updates."""
        return {**self.weights, "updates": torch.tensor(self.updates)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Resume from what `state` gave."""
        self.updates = int(state["updates"])
        self.weights = {name: x.clone() for name, x in state.items() if name != "updates"}
