"""Means that come out equal to the last bit however their values are spread over ranks.

sums = MetricSums()
sums.add({"rmse_mm": 12.5, "delta1": math.nan})  # of each image that this rank scored
MetricSums.means([sums, those_of_rank_1])        # {"rmse_mm": ..., "delta1": nan}

A sum is kept without rounding, as a few floats whose exact sum it is. So ranks exchange some
kilobytes, whatever the number of images, and the mean is that of one process with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class ExactSum:
    """A sum of numbers; what is not a number does not count.

    parts     floats without common bits, in order of size: their exact sum is that of all numbers
              (Shewchuk, Adaptive precision floating-point arithmetic, 1997; as math.fsum)
    count     how many numbers
    infinite  whether one of them was
    """

    parts: list[float] = field(default_factory=list)
    count: int = 0
    infinite: bool = False

    def add(self, value: float) -> None:
        """Add a number; NaN adds nothing."""
        if math.isnan(value):
            return
        self.count += 1
        if math.isinf(value):
            self.infinite = True
            return
        kept = 0
        for part in self.parts:
            large, small = (value, part) if abs(value) >= abs(part) else (part, value)
            value = large + small
            rest = small - (value - large)
            if rest:
                self.parts[kept] = rest
                kept += 1
        self.parts[kept:] = [value]


def mean_of_sums(sums: Sequence[ExactSum]) -> float:
    """Return the exactly rounded mean of all their numbers; NaN if there is none."""
    count = sum(one.count for one in sums)
    if not count:
        return math.nan
    if any(one.infinite for one in sums):
        return math.inf
    return math.fsum(part for one in sums for part in one.parts) / count


class MetricSums:
    """The exact sum of each of an image's values by name, over some images."""

    def __init__(self) -> None:
        self.by_name: dict[str, ExactSum] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of an image."""
        for name, value in values.items():
            self.by_name.setdefault(name, ExactSum()).add(value)

    @staticmethod
    def means(ranks: Sequence[MetricSums]) -> dict[str, float]:
        """Return the mean of each name over the images of all ranks that have a value of it."""
        names = dict.fromkeys(name for own in ranks for name in own.by_name)
        return {
            name: mean_of_sums([own.by_name[name] for own in ranks if name in own.by_name])
            for name in names
        }
