"""What a file of points or depth holds, as every format's reader returns it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class StoredPoints(NamedTuple):
    """The arrays of one file, with the values that are stored there.

    values    (H, W, 3) X, Y, Z, or (H, W) Z; floats or integers of any byte order, in the file's
              unit; read-only or not. Nothing is known of "no value" yet
    rgb       (H, W, 3) uint8, None where the file has no colors
    snr       (H, W) float32, signal to noise or confidence, larger is better; None without
    unit_mm   millimetres per unit, None where the file does not say it
    no_value  depths that stand for no value, beside 0 and what is not finite
    """

    values: Array
    rgb: Array | None = None
    snr: Array | None = None
    unit_mm: float | None = None
    no_value: tuple[float, ...] = ()


def _never(path: Path) -> bool:
    """Return False: the files of most formats hold X and Y."""
    return False


class PointFormat(NamedTuple):
    """A format of files of points or depth.

    name       for people
    suffixes   in lower case, with the dot
    read       the content of a file; raises BadFile. The path is for messages, the bytes are the
               file's
    read_size  (H, W) from the header of a file alone, where that is possible; raises BadFile
    has_rgb    whether a file may hold colors, so that it may be a capture by itself
    is_depth   whether a file holds depth without X and Y, so that its camera must be looked for
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, bytes], StoredPoints]
    read_size: Callable[[Path], tuple[int, int]]
    has_rgb: bool = False
    is_depth: Callable[[Path], bool] = _never
