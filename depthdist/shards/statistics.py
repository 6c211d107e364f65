"""Depth statistics of samples, shards and splits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from depthdist.shards.format import LEVELS

BIN = 64  # depth levels in a histogram bin: 1024 bins from 0 to far
PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.9)


def depth_stats(counts: dict[str, Any], step_mm: float) -> dict[str, Any]:
    """Return a sample's statistics, integers and bounds for `merge_stats`.

    counts  the second value of `quantize`

    Exact, because every depth level has its own count. The bounds are those of the stored depth.
    """
    histogram = counts["histogram"].copy()
    values = np.arange(LEVELS + 1)
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
    """Return the statistics of all parts together: integers are added, bounds widened.

    Exact, so the result does not depend on how samples are grouped or ordered.
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


def statistics(total: dict[str, Any], step_mm: float) -> dict[str, Any]:
    """Return merged statistics in mm: bounds, mean, population std, percentiles and histogram.

    A percentile is exact to a bin of the histogram; depths are taken as uniform within a bin.
    """
    count = total["valid"]
    first = total["sum"]
    second = total["sum_of_squares"]
    cumulative = np.cumsum([0, *total["histogram"]])
    # a bin holds whole levels, each of the depths that round to it
    edges = (np.arange(len(cumulative)) * BIN - 0.5) * step_mm
    percentiles = np.interp(np.array(PERCENTILES) / 100 * count, cumulative, edges)
    percentiles = percentiles.clip(total["min_mm"], total["max_mm"])
    return {
        "min_mm": total["min_mm"],
        "max_mm": total["max_mm"],
        "mean_mm": step_mm * first / count,
        "std_mm": step_mm * math.sqrt(count * second - first * first) / count,
        "percentiles_mm": {f"{p:g}": float(value) for p, value in zip(PERCENTILES, percentiles)},
        "valid_pixels": count,
        "valid_fraction": count / total["pixels"],
        "histogram": {"bin_mm": step_mm * BIN, "counts": total["histogram"]},
    }
