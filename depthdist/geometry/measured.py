"""Which pixels of a depth map were measured."""

from __future__ import annotations

import numpy as np


def is_measured(depth_mm: np.ndarray) -> np.ndarray:
    """Return bool of the shape of `depth_mm`: False where it is NaN, infinite, 0 or less."""
    measured: np.ndarray = np.isfinite(depth_mm) & (depth_mm > 0)
    return measured
