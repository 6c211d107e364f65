"""How good an expected error is: shares inside 1 and 2 sigma, sparsification, AUSE.

    scale = sigma_scale(errors_mm, spreads_mm)
    shares_inside(errors_mm, scale * spreads_mm)            # 0.683 and 0.954 of a normal error
    curve = sparsification(errors_mm, scale * spreads_mm)   # MAE of what is left when the least
                                                            # sure are refused
    ause(errors_mm, scale * spreads_mm)

Sparsification and AUSE as Ilg et al. (Uncertainty Estimates and Multi-Hypotheses Networks for
Optical Flow, 2018) define them.
"""

from __future__ import annotations

import numpy as np
from scipy.integrate import trapezoid

INSIDE = (0.6827, 0.9545)  # shares of a normal distribution within 1 and 2 sigma
REFUSED = np.linspace(0, 0.95, 20)  # shares of the pixels


def sigma_scale(errors: np.ndarray, spreads: np.ndarray) -> float:
    """Return what spreads are multiplied by so that both shares of INSIDE are met at best.

    errors, spreads  (N,), >= 0 and > 0, of one unit

    Errors have longer tails than a normal distribution has, so no number meets both: the larger of
    the two misses is made as small as it can be. 1 where there are none.
    """
    if not len(errors):
        return 1.0
    ratios = np.sort(errors / spreads)
    tried = np.quantile(ratios, np.linspace(0.5, 0.9, 401))
    misses = [
        np.abs(np.searchsorted(ratios, factor * tried, side="right") / len(ratios) - share)
        for factor, share in zip((1, 2), INSIDE)
    ]
    best = tried[int(np.argmin(np.maximum(*misses)))]
    return float(best) if best > 0 else 1.0


def shares_inside(errors: np.ndarray, sigmas: np.ndarray) -> tuple[float, float]:
    """Return the shares of (N,) errors that are at most 1 and 2 sigma; NaN without any."""
    if not len(errors):
        return float("nan"), float("nan")
    one, two = (float(np.mean(errors <= factor * sigmas)) for factor in (1, 2))
    return one, two


def sparsification(errors: np.ndarray, order_by: np.ndarray) -> np.ndarray:
    """Return the mean of the (N,) errors left when the REFUSED shares with the largest are out.

    order_by  (N,): sigmas; the errors themselves give the best curve that there is
    """
    sums = np.cumsum(errors[np.argsort(order_by, kind="stable")])
    left = np.maximum(np.round((1 - REFUSED) * len(errors)).astype(int), 1)
    means: np.ndarray = sums[left - 1] / left
    return means


def ause(errors: np.ndarray, sigmas: np.ndarray) -> float:
    """Return the area between the sparsification curves by sigma and by error, over the mean error.

    0 where sigma orders the pixels as their errors do.
    """
    gap = sparsification(errors, sigmas) - sparsification(errors, errors)
    mean = float(np.mean(errors))
    return float(trapezoid(gap, REFUSED) / mean) if mean > 0 else 0.0
