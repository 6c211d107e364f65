"""Least-squares lines through points in a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "np.ndarray[Any, Any]", "Tensor")


def fit_line(x: Values, y: Values) -> tuple[Any, Any]:
    """Return slope and offset of the line slope * x + offset with the least squares to y.

    x, y     any equal shape, NumPy or torch, finite; at best float64
    returns  0-dimensional, of the same library; slope 0 where x is the same everywhere

    Sums of deviations from the means: bits are the same for the same library and device.
    """
    mean_x = x.mean()
    mean_y = y.mean()
    dx = x - mean_x
    spread = (dx * dx).sum()
    slope = (dx * (y - mean_y)).sum() / spread if spread > 0 else mean_x * 0
    return slope, mean_y - slope * mean_x
