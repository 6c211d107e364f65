"""The loss scale of fp16 inside DeepSpeed's optimizers: when it grows, and when it cannot fall.

scale = LossScale(optimizer, scaler)
scale.value                             # what the loss is to be multiplied by
deepspeed.step()                        # divides the gradient by it
scale.end_step(skipped=optimizer.overflow)
"""

from __future__ import annotations

from typing import Any

MOST_SKIPPED = 20
"""Steps in a row that may be skipped; from 2^14, where the recipe begins, 14 reach a scale of 1."""


class LossScale:
    """The loss scale of an fp16 optimizer of DeepSpeed, with or without ZeRO.

    scaler  what DeepSpeed keeps the scale in

    Without an overflow the scale changes after the step. All of DeepSpeed's optimizers (0.19) let
    it grow before they divide the gradient by it: once in a `loss_scale_window` the weights would
    get half the gradient, and clipping would judge half its norm.
    """

    def __init__(self, optimizer: Any, scaler: Any):
        self.scaler = scaler
        self.skipped_in_a_row = 0
        self._is_smallest = False  # the scale that the last step began with
        self._grow = lambda: None
        self._update = optimizer._update_scale
        optimizer._update_scale = self._postpone_growth
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False  # `problem` says it, and the loop the samples

    @property
    def value(self) -> float:
        """What the loss is multiplied by so that small gradients survive fp16."""
        return float(self.scaler.cur_scale)

    @property
    def smallest(self) -> float:
        """What the scale may fall to; a fixed one does not fall."""
        found = getattr(self.scaler, "min_loss_scale", getattr(self.scaler, "min_scale", None))
        return 0.0 if found is None else float(found)

    def _postpone_growth(self, overflow: bool) -> None:
        """Take the place of the optimizer's own update of its scale."""
        self._is_smallest = self.value <= self.smallest
        if overflow:
            self._update(overflow)
        else:
            self._grow = lambda: self._update(overflow)

    def end_step(self, skipped: bool) -> None:
        """Let the scale grow where that is due, and count the steps that were skipped in a row."""
        grow, self._grow = self._grow, lambda: None
        grow()
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    @property
    def problem(self) -> str:
        """What the last gradients were, where no smaller scale will help, or nothing."""
        if not self.skipped_in_a_row:
            return ""
        if self._is_smallest:
            return f"not finite at a loss scale of {self.value:g}, the smallest,"
        if self.skipped_in_a_row >= MOST_SKIPPED:
            return f"not finite in {self.skipped_in_a_row} steps in a row"
        return ""
