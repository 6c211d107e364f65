"""How sure a number is: bootstrap intervals over images, and the paired comparison of two runs.

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
Values = Sequence[float] | np.ndarray


class Difference(NamedTuple):
    """The mean of a - b over `images`, its interval, and the p-value of the permutation test.

    p is the share of all swaps of a and b within images whose mean differs at least as much.
    """

    images: int
    difference: float
    low: float
    high: float
    p: float


def interval(values: Values) -> tuple[float, float]:
    """Return the bootstrap interval of the mean (bias-corrected and accelerated, Efron 1987).

    NaN values are left out; (NaN, NaN) where fewer than 3 images have a value.
    """
    known = _finite(values)
    if len(known) < 3:
        return math.nan, math.nan
    if np.ptp(known) == 0:
        return float(known[0]), float(known[0])
    with warnings.catch_warnings():
        # scipy warns where the acceleration is not defined, and then returns NaN
        warnings.simplefilter("ignore")
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


def compare(a: Values, b: Values) -> Difference:
    """Return the mean of a - b with its interval and p-value; both are of the same images in order.

    Interval and p are NaN where fewer than 3 images have both values.
    """
    difference = _finite(np.subtract(a, b))
    num = len(difference)
    mean = float(difference.mean()) if num else math.nan
    if num < 3:
        return Difference(num, mean, math.nan, math.nan, math.nan)
    low, high = interval(difference)
    if not difference.any():
        return Difference(num, 0.0, low, high, 1.0)
    test = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        batch=max(1, 10**7 // num),
        rng=np.random.default_rng(0),
    )
    return Difference(num, mean, low, high, float(test.pvalue))


def _finite(values: Values) -> np.ndarray:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]
