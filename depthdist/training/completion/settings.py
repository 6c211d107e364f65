"""The settings of the completion stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from depthdist.core.settings import range_problems

MAX_STEPS = 2**40


@dataclass(frozen=True)
class CompletionSettings:
    """Completion (second stage: fills what the camera missed, and says how sure it is)."""

    completion: bool = False
    """After the adapter, or on a run that has one, train the completion stage in RUN/completion: it
    learns on holes that are punched into what the camera measured. Needs images at the camera's
    size, as --detail does."""
    completion_steps: int = 1500
    "Optimizer steps of the completion stage."
    completion_images: int = 4
    "Images of one optimizer step over all ranks."
    completion_lr: float = 1e-3
    "Highest learning rate of the completion stage: 50 steps up, then half a cosine down to 2 %."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        return range_problems(
            self,
            ("completion_steps", 1 <= self.completion_steps < MAX_STEPS, ">= 1"),
            ("completion_images", 1 <= self.completion_images < MAX_STEPS, ">= 1"),
            ("completion_lr", 0 < self.completion_lr < math.inf, "> 0"),
        )
