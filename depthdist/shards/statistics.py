"""Depth statistics of samples, shards and splits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from depthdist.shards.depth_limits import (
    BIN,
    BinSums,
    Limits,
    capture_tail,
    choose_limits,
    describe_left_out,
    find_repeated,
    has_tails,
    merge_bins,
)
from depthdist.shards.format import LEVELS

PERCENTILES = (0.1, 1, 5, 50, 95, 99, 99.9)


def depth_stats(counts: dict[str, Any], step_mm: float, stem: str) -> dict[str, Any]:
    """Return a sample's statistics, integers and bounds for `merge_stats`.

    counts  the second value of `quantize`
    stem    of the capture

    Exact, because every depth level has its own count. The bounds are those of the stored depth.
    `histogram` counts the pixels of each bin of BIN levels; `bins` has, of those that have any, the
    number of flying pixels, the sums of all levels and of their squares, the lowest and the highest
    level (BinSums).
    """
    histogram = counts["histogram"].copy()
    histogram[0] = 0  # invalid
    flying = counts["flying"]
    values = np.arange(LEVELS + 1)
    tail = capture_tail(stem, histogram, flying)
    return {
        **{name: value for name, value in counts.items() if name not in ("histogram", "flying")},
        "valid": int(histogram.sum()),
        "pixels": int(counts["histogram"].sum()),
        "sum": int(histogram @ values),
        "sum_of_squares": int(histogram @ values**2),
        "min_mm": float(tail.lowest * step_mm),
        "max_mm": float(tail.highest * step_mm),
        "histogram": histogram.reshape(-1, BIN).sum(axis=1).tolist(),
        "bins": _sum_bins(histogram, flying),
        "tails": [list(tail)],
    }


def _sum_bins(histogram: np.ndarray, flying: np.ndarray) -> dict[str, list[int]]:
    """Return the BinSums of each bin that has pixels, by its number."""
    bins = {}
    counts = histogram.reshape(-1, BIN)
    for number in np.flatnonzero(counts.any(axis=1)).tolist():
        levels = np.arange(number * BIN, (number + 1) * BIN)
        found = levels[counts[number] > 0]
        bins[str(number)] = [
            int(flying[levels].sum()),
            int(counts[number] @ levels),
            int(counts[number] @ levels**2),
            int(found[0]),
            int(found[-1]),
        ]
    return bins


class MergedStats:
    """The statistics of all parts together: integers are added, bounds widened.

    Exact, so the result does not depend on how samples are grouped or ordered.
    """

    def __init__(self) -> None:
        self._total: dict[str, Any] = {}
        self._tails: list[list[Any]] = []

    def add(self, part: dict[str, Any]) -> None:
        """Add another part."""
        total = self._total
        for name, value in part.items():
            if name == "tails":  # sorted once, at the end
                self._tails += value
            else:
                total[name] = _merge(name, total[name], value) if name in total else value

    def total(self) -> dict[str, Any]:
        """Return what was added so far as one part."""
        return {**self._total, "tails": sorted(self._tails)} if self._tails else {**self._total}


def merge_stats(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the `MergedStats` of all parts."""
    merged = MergedStats()
    for part in parts:
        merged.add(part)
    return merged.total()


def _merge(name: str, first: Any, second: Any) -> Any:
    """Return one value of the statistics of two parts together."""
    if name in ("bins", "no_value"):
        how = merge_bins if name == "bins" else _add
        return {
            key: how(first[key], second[key])
            if key in first and key in second
            else first.get(key, second.get(key))
            for key in sorted({*first, *second})
        }
    if isinstance(first, list):
        return _add(first, second)
    if name.endswith("min_mm"):
        return min(first, second)
    if name.endswith("max_mm"):
        return max(first, second)
    return first + second


def _add(first: list[int], second: list[int]) -> list[int]:
    return [a + b for a, b in zip(first, second)]


def statistics(
    total: dict[str, Any], step_mm: float, keep_near: bool = False, keep_far: bool = False
) -> dict[str, Any]:
    """Return merged statistics in mm: bounds, mean, population std, percentiles and histogram.

    keep_near, keep_far  whether --near and --far decide that bound, and nothing is left out there

    Of the pixels within the limits of `depth_limits`; `left_out` says what is beyond. A percentile
    is exact to a bin of the histogram; depths are taken as uniform within a bin.
    """
    limits = choose_limits(total, keep_near, keep_far)
    left_out = describe_left_out(total, limits, step_mm)
    histogram = _only_within(total["histogram"], limits)
    used = _used_sums(total, limits, step_mm) if left_out else total
    count = used["valid"]
    first = used["sum"]
    second = used["sum_of_squares"]
    cumulative = np.cumsum([0, *histogram])
    # a bin holds whole levels, each of the depths that round to it
    edges = (np.arange(len(cumulative)) * BIN - 0.5) * step_mm
    percentiles = np.interp(np.array(PERCENTILES) / 100 * count, cumulative, edges)
    percentiles = percentiles.clip(used["min_mm"], used["max_mm"])
    found = {
        "min_mm": used["min_mm"],
        "max_mm": used["max_mm"],
        "mean_mm": step_mm * first / count,
        "std_mm": step_mm * math.sqrt(count * second - first * first) / count,
        "percentiles_mm": {f"{p:g}": float(value) for p, value in zip(PERCENTILES, percentiles)},
        "valid_pixels": count,
        "valid_fraction": count / total["pixels"],
        "histogram": {"bin_mm": step_mm * BIN, "counts": histogram},
    }
    if has_tails(total):
        found["flying_pixels"] = sum(BinSums(*sums).flying for sums in total["bins"].values())
    optional = {"left_out": left_out, "repeated": find_repeated(total, step_mm)}
    return found | {name: value for name, value in optional.items() if value}


def _only_within(counts: list[int], limits: Limits) -> list[int]:
    """Return the counts of bins with 0 where they are beyond the limits."""
    return [
        count if limits.first <= number < limits.end else 0 for number, count in enumerate(counts)
    ]


def _used_sums(total: dict[str, Any], limits: Limits, step_mm: float) -> dict[str, Any]:
    """Return count, sums and bounds of the pixels within the limits."""
    used = [
        BinSums(*sums)
        for number, sums in total["bins"].items()
        if limits.first <= int(number) < limits.end
    ]
    return {
        "valid": sum(total["histogram"][limits.first : limits.end]),
        "sum": sum(sums.levels for sums in used),
        "sum_of_squares": sum(sums.squares for sums in used),
        "min_mm": float(min(sums.lowest for sums in used) * step_mm),
        "max_mm": float(max(sums.highest for sums in used) * step_mm),
    }


def describe_missing(total: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return in how many pixels and captures each spelling of "no value" stands: NaN, 0, -1 ..."""
    return {
        value: {"pixels": pixels, "captures": captures}
        for value, (pixels, captures) in sorted(total.get("no_value", {}).items())
    }
