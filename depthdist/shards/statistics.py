"""Depth statistics of samples, shards and splits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from depthdist.shards.format import LEVELS

BIN = 64  # depth values a histogram bin: 1024 bins from 0 to far


def depth_stats(counts: dict[str, Any], step_mm: float) -> dict[str, Any]:
    """A sample's share of the statistics out of what `quantise` counted: whole numbers and bounds,
    for `merge_stats`.

    Exact, for every value has its own count. DepthRange are as stored: the pixel that sets one is
    inside it.
    """
    histogram, values = counts["histogram"].copy(), np.arange(LEVELS + 1)
    histogram[0] = 0  # invalid
    found = np.flatnonzero(histogram)
    return {
        **counts,
        "valid": int(histogram.sum()),
        "pixels": int(counts["histogram"].sum()),
        "sum": int(histogram @ values),
        "sum_of_squares": int(histogram @ values**2),
        "min_mm": float(found[0] * step_mm),
        "max_mm": float(found[-1] * step_mm),
        "histogram": histogram.reshape(-1, BIN).sum(axis=1).tolist(),
    }


def merge_stats(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all parts together: integers add, bounds widen.

    Exact, so the order and the cuts do not matter.
    """
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name not in total:
                total[name] = list(value) if isinstance(value, list) else value
            elif isinstance(value, list):
                total[name] = [a + b for a, b in zip(total[name], value)]
            elif name.endswith("min_mm"):
                total[name] = min(total[name], value)
            elif name.endswith("max_mm"):
                total[name] = max(total[name], value)
            else:
                total[name] += value
    return total


PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.9)


def statistics(total: dict[str, Any], step_mm: float) -> dict[str, Any]:
    """Merged integer sums as millimetres: mean and (population) std, bounds and percentiles of the
    stored depth.

    A percentile is exact to a bin of the histogram, within which depths count as evenly spread.
    """
    count, first, second, bin_mm = (
        total["valid"],
        total["sum"],
        total["sum_of_squares"],
        step_mm * BIN,
    )
    upto = np.cumsum([0, *total["histogram"]])
    edges = (
        np.arange(len(upto)) * BIN - 0.5
    ) * step_mm  # a bin holds whole steps, each the depths that round to it
    percentiles = np.interp(np.array(PERCENTILES) / 100 * count, upto, edges).clip(
        total["min_mm"], total["max_mm"]
    )
    return {
        "min_mm": total["min_mm"],
        "max_mm": total["max_mm"],
        "mean_mm": step_mm * first / count,
        "std_mm": step_mm * math.sqrt(count * second - first * first) / count,
        "percentiles_mm": {f"{p:g}": float(value) for p, value in zip(PERCENTILES, percentiles)},
        "valid_pixels": count,
        "valid_fraction": count / total["pixels"],
        "histogram": {"bin_mm": bin_mm, "counts": total["histogram"]},
    }
