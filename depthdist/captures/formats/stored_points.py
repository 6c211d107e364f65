"""What a file of points or depth holds, as every format's reader returns it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depthdist.core.errors import BadFile

Array = np.ndarray[Any, Any]

SNR_NAMES = ("snr", "signal_to_noise", "confidence", "conf", "quality")  # how files call it
MAX_PIXELS = 8192 * 8192  # more is no camera's: what declares it is not unpacked


class StoredPoints(NamedTuple):
    """The arrays of one file, with the values that are stored there.

    values    (H, W, 3) X, Y, Z, or (H, W) Z; floats or integers of any byte order, in the file's
              unit; read-only or not. Nothing is known of "no value" yet. H is 1 where the file is a
              list of points that does not tell its rows
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
    read_size  (H, W) from the header of a file alone, where that is possible; raises BadFile. H is
               1 for a list of points
    has_rgb    whether a file may hold colors, so that it may be a capture by itself
    is_depth   whether a file holds depth without X and Y, so that its camera must be looked for
    may_hold_points  whether a file may be of a capture, by more than its suffix; None: it may
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, bytes], StoredPoints]
    read_size: Callable[[Path], tuple[int, int]]
    has_rgb: bool = False
    is_depth: Callable[[Path], bool] = _never
    may_hold_points: Callable[[Path], bool] | None = None


def as_rgb(path: Path, colors: Array) -> Array:
    """Return colors (H, W, 3 or 4), uint8 or floats of 0 to 1, as (H, W, 3) uint8.

    raises BadFile for others
    """
    if colors.ndim == 3 and colors.shape[2] in (3, 4):
        rgb = colors[:, :, :3]
        if rgb.dtype == np.uint8:
            return rgb
        if rgb.dtype.kind == "f":
            rgb = np.nan_to_num(rgb)
            if rgb.min(initial=0) >= 0 and rgb.max(initial=0) <= 1:
                return (rgb * 255).round().astype(np.uint8)
    raise BadFile(
        path,
        f"colors are {colors.dtype} of shape {colors.shape}; expected (H, W, 3 or 4) uint8, or"
        " floats of 0 to 1",
    )


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a file; raise BadFile where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(num_bytes)
    except OSError as err:
        raise BadFile(path, f"cannot be read ({err.strerror})") from err
