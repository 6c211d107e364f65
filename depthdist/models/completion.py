"""Depth for the pixels that a camera missed, from a prediction and what it measured around them.

filled_mm = fill_depth(pred_mm, measured_mm)
"""

from __future__ import annotations

import numpy as np

from depthdist.geometry.measured import is_measured
from depthdist.models.harmonic_fill import fill_harmonic


def fill_depth(pred_mm: np.ndarray, measured_mm: np.ndarray) -> np.ndarray:
    """Return (H, W) float32 mm: what was measured as it is, elsewhere the prediction, moved to it.

    pred_mm      (H, W) mm, predicted
    measured_mm  (H, W) mm, NaN or 0 where nothing was measured

    log(measured / predicted) is carried into the holes harmonically from their rims, so that there
    is no step at a rim. Without any measured pixel it is the prediction.
    """
    measured = is_measured(measured_mm)
    if not measured.any():
        return pred_mm.astype(np.float32)
    pred = pred_mm.astype(np.float64)
    ratio = np.log(np.where(measured, measured_mm, 1.0) / pred)
    filled = pred * np.exp(fill_harmonic(ratio, measured))
    return np.where(measured, measured_mm, filled).astype(np.float32)
