"""Choose the depths that a split's bounds and statistics count: no single pixel decides them.

    limits = choose_limits(total, keep_near=False, keep_far=False)  # of merged statistics
    left_out = describe_left_out(total, limits, step_mm)  # for index.json

A depth counts if it is not far beyond what other captures reach as well. At each end:

1. A capture reaches to where PIXEL_SHARE of its pixels (at least MIN_PIXELS) lie beyond. Flying
   pixels, which stand alone in space, do not count.
2. The split reaches to where its second-farthest-reaching capture does (in splits of fewer than
   MIN_CAPTURES: the farthest-reaching one), and to the very end where more than TRUSTED_SHARE of
   all pixels, flying ones apart, lie beyond: so many are no accident.
3. What lies beyond that by more than MARGIN is left out; the bound is the last depth within it.

All from integers that are added up, so the number of workers and shards changes nothing. Where
nothing is left out the bounds are the exact extremes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

BIN = 64  # depth levels in a histogram bin: 1024 bins from 0 to far
PIXEL_SHARE = 1e-4  # of a capture's pixels
MIN_PIXELS = 8  # of a capture, but at most one in a hundred
MIN_CAPTURES = 4  # from which on a single capture does not decide
TRUSTED_SHARE = 1e-3  # of a split's pixels
MARGIN = 0.1  # of the depth
MAX_NAMED = 5  # captures in a message
REPEATED_SHARE = 0.01  # of a split's pixels that have one and the same outermost depth


class Tail(NamedTuple):
    """How far one capture reaches, in depth levels.

    near, far        as rule 1 says
    lowest, highest  of all its pixels
    """

    stem: str
    near: int
    far: int
    lowest: int
    highest: int


class BinSums(NamedTuple):
    """What is known of the pixels of one bin, in depth levels."""

    flying: int  # pixels
    levels: int  # sum over all pixels
    squares: int
    lowest: int
    highest: int


class Limits(NamedTuple):
    """The bins of the histogram that count: from `first` to before `end`."""

    first: int
    end: int


def capture_tail(stem: str, histogram: np.ndarray, flying: np.ndarray) -> Tail:
    """Return how far a capture with at least one valid pixel reaches.

    histogram, flying  (65536,) pixels of each level, all and the flying ones; [0] is not used
    """
    found = np.flatnonzero(histogram[1:]) + 1
    solid = (histogram - flying)[1:]
    count = int(solid.sum())
    if not count:  # every pixel stands alone
        solid = histogram[1:]
        count = int(solid.sum())
    beyond = int(min(max(MIN_PIXELS, PIXEL_SHARE * count), count / 100))
    cumulative = np.cumsum(solid)
    return Tail(
        stem=stem,
        near=int(np.searchsorted(cumulative, beyond, side="right")) + 1,
        far=int(np.searchsorted(cumulative, count - beyond, side="left")) + 1,
        lowest=int(found[0]),
        highest=int(found[-1]),
    )


def choose_limits(total: dict[str, Any], keep_near: bool, keep_far: bool) -> Limits:
    """Return the bins that count in merged statistics (see `depth_stats`).

    keep_near, keep_far  whether that end is the user's own: nothing is left out there

    Statistics of an older version say too little: then all bins count.
    """
    histogram = np.array(total["histogram"])
    all_bins = Limits(0, len(histogram))
    if not has_tails(total):
        return all_bins
    tails = [Tail(*values) for values in total["tails"]]
    solid = histogram.copy()
    for number, sums in total["bins"].items():
        solid[int(number)] -= BinSums(*sums).flying
    trusted = TRUSTED_SHARE * histogram.sum()
    rank = 1 if len(tails) >= MIN_CAPTURES else 0
    reached = sorted(tail.near for tail in tails)
    first = _bin_of(reached[rank] * (1 - MARGIN))
    if solid[:first].sum() > trusted:
        first = _bin_of(reached[0] * (1 - MARGIN))
    reached = sorted((tail.far for tail in tails), reverse=True)
    end = _bin_of(reached[rank] * (1 + MARGIN)) + 1
    if solid[end:].sum() > trusted:
        end = _bin_of(reached[0] * (1 + MARGIN)) + 1
    return Limits(
        first=all_bins.first if keep_near else first, end=all_bins.end if keep_far else end
    )


def _bin_of(level: float) -> int:
    return int(level) // BIN


def has_tails(total: dict[str, Any]) -> bool:
    """Return whether all of what was merged has what `choose_limits` needs."""
    bins = total.get("bins", {}).values()
    return sum(BinSums(*sums).levels for sums in bins) == total["sum"]


def merge_bins(first: list[int], second: list[int]) -> list[int]:
    """Return the BinSums of two parts together."""
    one, other = BinSums(*first), BinSums(*second)
    merged = BinSums(
        flying=one.flying + other.flying,
        levels=one.levels + other.levels,
        squares=one.squares + other.squares,
        lowest=min(one.lowest, other.lowest),
        highest=max(one.highest, other.highest),
    )
    return list(merged)


def describe_left_out(
    total: dict[str, Any], limits: Limits, step_mm: float
) -> dict[str, dict[str, Any]]:
    """Return what is left out at each end, nearer and farther, where something is.

    pixels, share    how many, and of all valid ones
    limit_mm         from where on
    extreme_mm       the outermost of them
    num_captures     how many have some
    captures         the first MAX_NAMED of them, the worst first
    """
    if not has_tails(total):
        return {}
    histogram = total["histogram"]
    tails = [Tail(*values) for values in total["tails"]]
    found = {}
    near = [t for t in sorted(tails, key=lambda t: (t.lowest, t.stem)) if _nearer(t, limits)]
    far = [t for t in sorted(tails, key=lambda t: (-t.highest, t.stem)) if _farther(t, limits)]
    if near:
        pixels = sum(histogram[: limits.first])
        limit_mm = (limits.first * BIN - 0.5) * step_mm
        found["nearer"] = _entry(pixels, total, limit_mm, near[0].lowest * step_mm, near)
    if far:
        pixels = sum(histogram[limits.end :])
        limit_mm = (limits.end * BIN - 0.5) * step_mm
        found["farther"] = _entry(pixels, total, limit_mm, far[0].highest * step_mm, far)
    return found


def find_repeated(total: dict[str, Any], step_mm: float) -> list[dict[str, Any]]:
    """Return the outermost depths that most captures share to the last bit: "no value", perhaps.

    side, depth_mm    nearest or farthest, and the depth
    share             of the split's pixels that have it, REPEATED_SHARE or more
    num_captures, of  that have it, and all
    """
    if not has_tails(total):
        return []
    tails = [Tail(*values) for values in total["tails"]]
    found = []
    ends = {
        "nearest": Counter(tail.lowest for tail in tails),
        "farthest": Counter(tail.highest for tail in tails),
    }
    for side, levels in ends.items():
        level, num_captures = levels.most_common(1)[0]
        sums = BinSums(*total["bins"][str(level // BIN)])
        share = total["histogram"][level // BIN] / total["valid"]
        alone = sums.lowest == sums.highest  # no other depth in its bin
        if alone and share >= REPEATED_SHARE and num_captures >= max(2, len(tails) / 2):
            found.append(
                {
                    "side": side,
                    "depth_mm": level * step_mm,
                    "share": share,
                    "num_captures": num_captures,
                    "of": len(tails),
                }
            )
    return found


def _nearer(tail: Tail, limits: Limits) -> bool:
    return tail.lowest // BIN < limits.first


def _farther(tail: Tail, limits: Limits) -> bool:
    return tail.highest // BIN >= limits.end


def _entry(
    pixels: int, total: dict[str, Any], limit_mm: float, extreme_mm: float, tails: list[Tail]
) -> dict[str, Any]:
    return {
        "pixels": pixels,
        "share": pixels / total["valid"],
        "limit_mm": limit_mm,
        "extreme_mm": extreme_mm,
        "num_captures": len(tails),
        "captures": [tail.stem for tail in tails[:MAX_NAMED]],
    }
