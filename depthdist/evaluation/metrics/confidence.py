"""How sure a number is: bootstrap intervals over images, and the paired comparison of two
predictions of the same images.

    low, high = interval([190.1, 204.7, ...])                # 95 %, of the mean
    found = compare(values_a, values_b)  # found.difference, found.low, found.high, found.p

With few images the numbers are rough, and images of one scene are not independent: the true
uncertainty is larger than both say.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 5000


class Difference(NamedTuple):
    """Mean of a - b over `images`, its interval, and p: how often chance alone, swapping a and b in
    each image, does as much.
    """

    images: int
    difference: float
    low: float
    high: float
    p: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap's interval of the mean (bias-corrected and accelerated, Efron 1987).

    NaN where fewer than 3 images have a value.
    """
    known = _known(values)
    if len(known) < 3:
        return math.nan, math.nan
    if np.ptp(known) == 0:
        return float(known[0]), float(known[0])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it says so where the acceleration is not defined, and gives NaN then
        for method in ("BCa", "percentile"):
            found = stats.bootstrap(
                (known,),
                np.mean,
                n_resamples=RESAMPLES,
                batch=max(1, 10**7 // len(known)),
                confidence_level=LEVEL,
                method=method,
                rng=np.random.default_rng(0),
            )
            low, high = map(float, found.confidence_interval)
            if math.isfinite(low) and math.isfinite(high):
                break
    return low, high


def compare(a: Sequence[float], b: Sequence[float]) -> Difference:
    """A - b, image by image: a's and b's values are of the same images, in the same order."""
    difference = _known(np.subtract(a, b))
    if len(difference) < 3:
        return Difference(
            len(difference),
            float(difference.mean()) if len(difference) else math.nan,
            math.nan,
            math.nan,
            math.nan,
        )
    low, high = interval(difference)
    if not difference.any():
        return Difference(len(difference), 0.0, low, high, 1.0)
    test = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        batch=max(1, 10**7 // len(difference)),
        rng=np.random.default_rng(0),
    )
    return Difference(len(difference), float(difference.mean()), low, high, float(test.pvalue))


def _known(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]
